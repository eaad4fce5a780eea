//! Expressions of Kconfig (Documentation/kbuild/kconfig-language.rst, "Menu dependencies").

use super::source::is_name;

/// How deeply expressions are nested at most.
const MAX_DEPTH: usize = 32;

/// What has to be set for an expression to hold; nothing if it can't hold. `exists` says which symbols
/// there are. Of alternatives, the first
/// that needs the least is taken.
pub(super) fn needs(expression: &str, exists: &dyn Fn(&str) -> bool) -> Option<Vec<String>> {
    let tokens = tokens(expression);
    let mut parser = Parser { tokens: &tokens, at: 0, exists };
    parser.alternatives(MAX_DEPTH)
}

fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let mut token = c.to_string();
        let more = |token: &str, next: char| match c {
            '"' => token.len() == 1 || !token.ends_with('"'),
            '&' | '|' => token.len() == 1 && next == c,
            '!' | '<' | '>' => token.len() == 1 && next == '=',
            '$' => !token.ends_with(')'),
            c => is_name(c) && is_name(next),
        };
        while let Some(next) = characters.next_if(|next| more(&token, *next)) {
            token.push(next);
        }
        match c {
            '#' => break,
            c if c.is_whitespace() => {}
            _ => tokens.push(token),
        }
    }
    tokens
}

struct Parser<'a> {
    tokens: &'a [String],
    at: usize,
    exists: &'a dyn Fn(&str) -> bool,
}

impl Parser<'_> {
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", String::as_str)
    }

    /// Whether this is the next token, which is passed then.
    fn take(&mut self, token: &str) -> bool {
        let is_next = self.peek() == token;
        self.at = self.at.saturating_add(usize::from(is_next));
        is_next
    }

    fn alternatives(&mut self, depth: usize) -> Option<Vec<String>> {
        let mut found = self.all(depth);
        while self.take("||") {
            let other = self.all(depth);
            // `A || !A` needs nothing.
            let fewer = match (&found, &other) {
                (Some(found), Some(other)) => other.len() < found.len(),
                (found, _) => found.is_none(),
            };
            found = if fewer { other } else { found };
        }
        found
    }

    fn all(&mut self, depth: usize) -> Option<Vec<String>> {
        let mut found = self.one(depth);
        while self.take("&&") {
            let other = self.one(depth);
            found = found.zip(other).map(|(found, other)| [found, other].concat());
        }
        found
    }

    fn one(&mut self, depth: usize) -> Option<Vec<String>> {
        let depth = depth.checked_sub(1)?;
        if self.take("!") {
            self.one(depth);
            return Some(Vec::new());
        }
        if self.take("(") {
            let inner = self.alternatives(depth);
            self.take(")");
            return inner;
        }
        let symbol = self.peek().to_owned();
        self.at = self.at.saturating_add(1);
        let equal = self.take("=");
        if equal || ["!=", "<", ">", "<=", ">="].iter().any(|operator| self.take(operator)) {
            let value = self.peek().trim_matches('"').to_owned();
            self.at = self.at.saturating_add(1);
            let wanted = if equal { matches!(&*value, "y" | "m") } else { value == "n" };
            return if wanted { self.symbol(&symbol) } else { Some(Vec::new()) };
        }
        self.symbol(&symbol)
    }

    fn symbol(&self, name: &str) -> Option<Vec<String>> {
        match name {
            "y" | "m" => Some(Vec::new()),
            // Of no use to anybody who wants to run it.
            "n" | "" | "COMPILE_TEST" | "BROKEN" => None,
            // What make finds out of the compiler.
            name if name.starts_with('$') => Some(Vec::new()),
            name => (self.exists)(name).then(|| vec![name.to_owned()]),
        }
    }
}
