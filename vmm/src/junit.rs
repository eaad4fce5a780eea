//! `--junit FILE`: how a run ended, as CI systems read it: a report in JUnit's XML with one test case, and
//! the newest output of the guest's consoles.

use std::fmt::{self, Display, Formatter, Write as _};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cli::RunOptions;
use crate::double_buffer::DoubleBuffer;
use crate::error::Error;
use crate::exit_reason::ExitReason;
use crate::{outfile, shared_memory};

/// Who may read it: everybody, as far as the umask goes.
const MODE: u32 = 0o644;

/// How many bytes of the consoles' output are kept, a power of two.
const TAIL: usize = 64 << 10;

/// The longest message, in bytes.
const MAX_MESSAGE: usize = 4096;

/// What the process with the guest leaves of its run; its parent has it even when that process is killed.
#[derive(Debug)]
pub struct RunReport {
    started: Instant,
    tail: ConsoleTail,
    /// The ending's name, and behind the first end of line what strait said of it.
    ending: DoubleBuffer,
}

/// The newest output of the guest's consoles.
#[derive(Debug)]
struct ConsoleTail {
    /// How many bytes there were.
    written: &'static AtomicU64,
    /// The newest, each at its number modulo their size.
    bytes: &'static [AtomicU64],
}

/// How a run ended.
struct Ending<'a> {
    exit_status: u8,
    name: &'a str,
    message: &'a str,
}

impl RunReport {
    /// One of a run that has begun now, to be made before the process is forked. Checks that the report
    /// can be written to `path`, as far as can be known.
    ///
    /// # Errors
    ///
    /// It can't, or there is no memory for it.
    #[cold]
    pub fn new(path: &Path) -> Result<Arc<Self>, Error> {
        outfile::check(path, MODE).map_err(|e| unwritable(path, &e))?;
        let no_memory = |e| Error::new(format!("there is no memory for a report (--junit): {e}"));
        let tail = ConsoleTail::new().map_err(no_memory)?;
        let ending = DoubleBuffer::new().map_err(no_memory)?;
        Ok(Arc::new(Self { started: Instant::now(), tail, ending }))
    }

    /// Takes output of the guest's consoles; one thread at a time.
    pub fn put(&self, bytes: &[u8]) {
        self.tail.put(bytes);
    }

    /// Leaves how the run ended to the parent.
    #[cold]
    pub fn conclude(&self, result: &Result<ExitReason, Error>) {
        let (name, message) = name_and_message(result);
        // What is so long that it isn't taken was cut off before.
        let _ = self.ending.put(&format!("{name}\n{}", cut(&message)));
    }

    /// Writes the report of a run that ended with `exit_status`; `otherwise` is the ending of one whose
    /// process has left none.
    ///
    /// # Errors
    ///
    /// It can't be written.
    #[cold]
    pub fn write(
        &self,
        options: &RunOptions,
        exit_status: u8,
        otherwise: (&str, &str),
    ) -> Result<(), Error> {
        let left = self.ending.newest(0).map(|(_, text)| text);
        let left = left.as_deref().and_then(|text| text.split_once('\n'));
        let (name, message) = left.unwrap_or(otherwise);
        let ending = Ending { exit_status, name, message };
        write(options, self.started.elapsed(), &ending, &self.tail.newest())
    }
}

/// Writes the report of a run that has failed before it had a process for its guest, if one is asked for.
///
/// # Errors
///
/// It can't be written.
#[cold]
pub fn write_failed(options: &RunOptions, started: Instant, error: &Error) -> Result<(), Error> {
    let (name, message) = ("failed", error.log_text());
    let ending = Ending { exit_status: error.exit_status(), name, message: &message };
    write(options, started.elapsed(), &ending, &[])
}

fn write(
    options: &RunOptions,
    time: Duration,
    ending: &Ending<'_>,
    output: &[u8],
) -> Result<(), Error> {
    let Some(path) = options.junit.as_deref().filter(|_| !options.dry_run) else { return Ok(()) };
    let firmware = options.firmware.as_ref().map(|firmware| &firmware.path);
    let program = firmware.filter(|_| options.kernel.path.as_os_str().is_empty());
    let program = program.unwrap_or(&options.kernel.path);
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let text = xml(&name, time, ending, &String::from_utf8_lossy(output));
    outfile::write(path, MODE, text.as_bytes()).map_err(|e| unwritable(path, &e))
}

fn unwritable(path: &Path, e: &io::Error) -> Error {
    Error::new(format!("the report can't be written to {}: {e}", path.display()))
        .help("--junit FILE in a directory you can write to")
}

/// The ending's name and what strait says of it.
fn name_and_message(result: &Result<ExitReason, Error>) -> (&'static str, String) {
    match result {
        Ok(reason) => (reason.name(), reason.message().unwrap_or_default()),
        Err(error) => ("failed", error.log_text()),
    }
}

/// As much of it as a message may have.
fn cut(message: &str) -> &str {
    let end = (0..=MAX_MESSAGE).rev().find(|end| message.is_char_boundary(*end));
    message.get(..end.unwrap_or_default()).unwrap_or(message)
}

/// The report.
fn xml(name: &str, time: Duration, ending: &Ending<'_>, output: &str) -> String {
    let Ending { exit_status, name: ending, message } = ending;
    let failures = u8::from(*exit_status != 0);
    let time = time.as_secs_f64();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuite name=\"strait\" tests=\"1\" failures=\"{failures}\" errors=\"0\" skipped=\"0\" \
         time=\"{time:.3}\">\n\
         <testcase classname=\"strait.run\" name=\"{}\" time=\"{time:.3}\">\n",
        Attribute(name)
    );
    if failures != 0 {
        // Into a string, which takes everything.
        let _ = writeln!(
            text,
            "<failure type=\"{}\" message=\"{}\">exit status {exit_status}</failure>",
            Attribute(ending),
            Attribute(message)
        );
    }
    let _ = write!(text, "<system-out>{}</system-out>\n</testcase>\n</testsuite>\n", Text(output));
    text
}

/// A text as XML has it between tags. What XML 1.0 can't have at all (2.2 "Characters"), such as escapes, is
/// replaced by U+FFFD.
struct Text<'a>(&'a str);

/// The same in an attribute, where ends of lines would become spaces (3.3.3 "Attribute-Value
/// Normalization").
struct Attribute<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| write_escaped(f, character))
    }
}

impl Display for Attribute<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '\t' | '\r' | '\n' => write!(f, "&#{};", u32::from(character)),
            _ => write_escaped(f, character),
        })
    }
}

fn write_escaped(f: &mut Formatter<'_>, character: char) -> fmt::Result {
    match character {
        '&' => f.write_str("&amp;"),
        '<' => f.write_str("&lt;"),
        '>' => f.write_str("&gt;"),
        '"' => f.write_str("&quot;"),
        '\t' | '\r' | '\n' => f.write_char(character),
        '\0'..' ' | '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}'),
        _ => f.write_char(character),
    }
}

impl ConsoleTail {
    fn new() -> io::Result<Self> {
        let words = shared_memory::words(1 + TAIL / size_of::<u64>())?;
        let (written, bytes) = words.split_first().ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { written, bytes })
    }

    /// The word that has the byte with this number, and where in it.
    fn place(&self, number: u64) -> Option<(&'static AtomicU64, u32)> {
        let at = usize::try_from(number % TAIL as u64).ok()?;
        let word = self.bytes.get(at / size_of::<u64>())?;
        Some((word, u32::try_from(at % size_of::<u64>()).ok()?.saturating_mul(8)))
    }

    fn put(&self, bytes: &[u8]) {
        let mut number = self.written.load(Ordering::Relaxed);
        for byte in bytes {
            if let Some((word, shift)) = self.place(number) {
                let others = word.load(Ordering::Relaxed) & !(0xff << shift);
                word.store(others | u64::from(*byte) << shift, Ordering::Relaxed);
            }
            number = number.wrapping_add(1);
        }
        self.written.store(number, Ordering::Release);
    }

    /// The newest bytes, the oldest first.
    fn newest(&self) -> Vec<u8> {
        let end = self.written.load(Ordering::Acquire);
        let byte = |number| {
            let (word, shift) = self.place(number)?;
            u8::try_from(word.load(Ordering::Relaxed) >> shift & 0xff).ok()
        };
        (end.saturating_sub(TAIL as u64)..end).filter_map(byte).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether XML 1.0 has this character (2.2).
    fn is_of_xml(character: char) -> bool {
        matches!(character, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}'
            | '\u{10000}'..)
    }

    #[test]
    fn the_newest_output_is_kept() {
        let tail = ConsoleTail::new().unwrap();
        assert!(tail.newest().is_empty());
        tail.put(b"first ");
        tail.put(b"second");
        assert_eq!(tail.newest(), b"first second");
        let all: Vec<u8> = (0..3 * TAIL + 5).map(|n| u8::try_from(n % 251).unwrap()).collect();
        all.chunks(777).for_each(|piece| tail.put(piece));
        assert_eq!(tail.newest(), all[all.len() - TAIL..]);
        // What a broken process leaves.
        tail.written.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(tail.newest().len(), TAIL);
        tail.put(b"more");
    }

    #[test]
    fn any_output_makes_a_well_formed_report() {
        let hostile: Vec<u8> = (0..=255).chain(*b"]]></system-out><!-- & \xed\xa0\x80").collect();
        let ended = Ending { exit_status: 5, name: "fail-on", message: "has `<\"\u{1b}[1m\n&`" };
        let output = String::from_utf8_lossy(&hostile).into_owned() + "\u{fffe}\u{ffff}\u{10ffff}";
        let text = xml("a<b>\"&.img", Duration::from_millis(1500), &ended, &output);
        assert!(text.chars().all(is_of_xml));
        // But for the tags, no character that begins or ends one.
        let tags = text.matches('<').count();
        assert_eq!((tags, text.matches('>').count()), (9, 9), "{text}");
        assert!(text.contains(
            "<testcase classname=\"strait.run\" name=\"a&lt;b&gt;&quot;&amp;.img\" time=\"1.500\">\n\
             <failure type=\"fail-on\" message=\"has `&lt;&quot;\u{fffd}[1m&#10;&amp;`\">exit status 5<"
        ));
        assert!(text.contains("]]&gt;&lt;/system-out&gt;&lt;!-- &amp; "));
        // Each & begins a reference.
        for reference in text.split('&').skip(1) {
            let name = reference.split_once(';').unwrap().0;
            assert!(["amp", "lt", "gt", "quot", "#10"].contains(&name), "{name}");
        }
        let most = "\"".repeat(TAIL);
        assert!(xml("a", Duration::MAX, &ended, &most).len() < 8 * TAIL);
    }

    #[test]
    fn a_run_that_ended_well_has_no_failure() {
        let ended = Ending { exit_status: 0, name: "power-off", message: "" };
        let text = xml("Image", Duration::ZERO, &ended, "hello\n");
        assert!(text.contains("failures=\"0\"") && !text.contains("<failure"), "{text}");
        assert!(text.contains("<system-out>hello\n</system-out>"));
    }

    #[test]
    fn how_it_ended_is_the_parent_s_to_write() {
        let path = std::env::temp_dir().join(format!("strait-junit-{}", std::process::id()));
        let options = RunOptions { junit: Some(path.clone()), ..RunOptions::default() };
        let written = || std::fs::read_to_string(&path).unwrap();
        let report = RunReport::new(&path).unwrap();
        report.put(b"output");
        report.write(&options, 137, ("killed", "by a signal")).unwrap();
        assert!(written().contains("<failure type=\"killed\" message=\"by a signal\">"));
        let error = Error::new("x".repeat(2 * MAX_MESSAGE)).help("none");
        report.conclude(&Err(error));
        report.write(&options, 1, ("killed", "")).unwrap();
        assert!(
            written().contains("type=\"failed\" message=\"xxx") && written().contains("output")
        );
        report.conclude(&Ok(ExitReason::PowerOff));
        report.write(&options, 0, ("killed", "")).unwrap();
        assert!(!written().contains("failure "));
        write_failed(&options, Instant::now(), &Error::new("no device")).unwrap();
        assert!(written().contains("message=\"no device\">exit status 1"));
        std::fs::remove_file(&path).unwrap();
        assert!(RunReport::new(Path::new("/no/such/report")).is_err());
        assert_eq!((cut("é"), cut(&"é".repeat(MAX_MESSAGE)).len()), ("é", MAX_MESSAGE));
    }
}
