//! A program of the kernel's classic BPF (the kernel's Documentation/networking/filter.rst), as a graph of
//! its instructions, each of which is there once.

use std::collections::BTreeMap;

use seccompiler::sock_filter;

/// Instructions, as in the kernel's include/uapi/linux/bpf_common.h.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const AND: u16 = 0x54;
const EQUAL: u16 = 0x15;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data` of the call's number and of the architecture (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// That of the first argument.
const ARGUMENT: u32 = 16;

/// 64-bit Arm (linux/audit.h).
const AARCH64: u32 = 0xc000_00b7;

/// Answers: linux/seccomp.h.
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

/// Where seccompiler compares the call's number, after the architecture, and where it goes on.
const COMPARISON: usize = 4;
const BODY: usize = 5;

/// An instruction's place in its graph.
pub type Id = usize;

/// An instruction and those that may follow it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Return(u32),
    Load(u32, Id),
    And(u32, Id),
    /// Goes on at the first if the accumulator is this value, else at the second.
    Equal(u32, Id, Id),
    /// The same if it is this value or more.
    AtLeast(u32, Id, Id),
}

/// What follows upon a system call's number.
pub struct Call {
    /// The number.
    pub number: u32,
    /// Where the comparisons of its arguments begin.
    pub body: Id,
}

/// Instructions that later ones refer to.
#[derive(Default)]
pub struct Graph {
    nodes: Vec<Node>,
    known: BTreeMap<Node, Id>,
}

impl Graph {
    fn add(&mut self, node: Node) -> Id {
        // A comparison that changes nothing.
        if let Node::Equal(_, yes, no) | Node::AtLeast(_, yes, no) = node
            && yes == no
        {
            return yes;
        }
        *self.known.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        })
    }

    /// The end of the process.
    pub fn kill(&mut self) -> Id {
        self.add(Node::Return(KILL_PROCESS))
    }

    /// The call's leave, if it is one of this architecture: looked at last, as most numbers get no leave.
    fn allow(&mut self) -> Id {
        let (kill, allow) = (self.kill(), self.add(Node::Return(ALLOW)));
        let compared = self.add(Node::Equal(AARCH64, allow, kill));
        self.add(Node::Load(ARCHITECTURE, compared))
    }

    /// A comparison of the call's number, which is loaded.
    pub fn equal(&mut self, number: u32, yes: Id, no: Id) -> Id {
        self.add(Node::Equal(number, yes, no))
    }

    /// The same with a number that splits others.
    pub fn at_least(&mut self, number: u32, yes: Id, no: Id) -> Id {
        self.add(Node::AtLeast(number, yes, no))
    }

    /// Loads the call's number, which those that follow compare.
    pub fn number(&mut self, next: Id) -> Id {
        self.add(Node::Load(NUMBER, next))
    }

    /// The same, where the kernel is to run the filter for each call: it looks for calls that are allowed
    /// whatever their arguments as far as nothing but number and architecture is loaded.
    pub fn uncached(&mut self, next: Id) -> Id {
        let number = self.number(next);
        self.add(Node::Load(ARGUMENT, number))
    }

    /// Looks for a call by its first argument's rule before its number, else by its number, and goes on at
    /// `others` for other calls.
    pub fn rule_first(&mut self, call: &Call, others: Id) -> Result<Id, String> {
        let Node::Load(offset, compared) = self.nodes[call.body] else {
            return Err("a first call's rules begin in another way".to_owned());
        };
        let Node::Equal(value, yes, _) = self.nodes[compared] else {
            return Err("a first call's rules begin in another way".to_owned());
        };
        let [yes, no] = [yes, call.body].map(|then| {
            let numbers = self.equal(call.number, then, others);
            self.number(numbers)
        });
        let compared = self.add(Node::Equal(value, yes, no));
        Ok(self.add(Node::Load(offset, compared)))
    }

    /// A system call's part of what seccompiler makes for it alone.
    pub fn call(&mut self, filter: &[sock_filter]) -> Result<Call, String> {
        let is = |at: usize, code, k: Option<u32>| {
            filter.get(at).is_some_and(|one| one.code == code && k.is_none_or(|k| one.k == k))
        };
        let expected = is(0, LOAD, Some(ARCHITECTURE))
            && is(1, EQUAL, Some(AARCH64))
            && is(3, LOAD, Some(NUMBER))
            && is(COMPARISON, EQUAL, None);
        if !expected || filter[COMPARISON].jt != 0 {
            return Err("seccompiler lays filters out in another way".to_owned());
        }
        let body = self.copy(filter, BODY, Some(NUMBER))?;
        Ok(Call { number: filter[COMPARISON].k, body })
    }

    /// Copies what begins at an instruction, without jumps to jumps and without what is `loaded` already.
    fn copy(
        &mut self,
        filter: &[sock_filter],
        at: usize,
        loaded: Option<u32>,
    ) -> Result<Id, String> {
        let one = filter.get(at).ok_or("a jump beyond the end")?;
        let node = match one.code {
            JUMP => return self.copy(filter, at + 1 + one.k as usize, loaded),
            RETURN if one.k == ALLOW => return Ok(self.allow()),
            RETURN => Node::Return(one.k),
            LOAD if loaded == Some(one.k) => return self.copy(filter, at + 1, loaded),
            LOAD => Node::Load(one.k, self.copy(filter, at + 1, Some(one.k))?),
            AND => Node::And(one.k, self.copy(filter, at + 1, None)?),
            EQUAL => {
                let mut to = |over: u8| self.copy(filter, at + 1 + usize::from(over), loaded);
                let (yes, no) = (to(one.jt)?, to(one.jf)?);
                Node::Equal(one.k, yes, no)
            }
            other => return Err(format!("an instruction {other:#x} isn't expected")),
        };
        Ok(self.add(node))
    }

    /// The program that begins at an instruction, as `struct sock_filter` has it in memory on a
    /// little-endian machine.
    pub fn words(&self, start: Id) -> Result<Vec<u64>, String> {
        let mut order = Vec::new();
        self.finish(start, &mut order);
        order.reverse();
        let place = |id: Id| order.iter().position(|one| *one == id).ok_or("a jump to nowhere");
        let word = |code: u16, yes: u64, no: u64, k: u32| {
            u64::from(code) | yes << 16 | no << 24 | u64::from(k) << 32
        };
        let mut words = Vec::new();
        for (at, id) in order.iter().enumerate() {
            let over = |id: Id| -> Result<u64, String> {
                let over = place(id)?.checked_sub(at + 1).ok_or("a jump backwards")?;
                u8::try_from(over).map(u64::from).map_err(|_| "a jump over too much".to_owned())
            };
            let follows = |code, k, next: Id| match over(next)? {
                0 => Ok(word(code, 0, 0, k)),
                _ => Err("what follows a load lies elsewhere".to_owned()),
            };
            words.push(match self.nodes[*id] {
                Node::Return(answer) => word(RETURN, 0, 0, answer),
                Node::Load(offset, next) => follows(LOAD, offset, next)?,
                Node::And(mask, next) => follows(AND, mask, next)?,
                Node::Equal(k, yes, no) => word(EQUAL, over(yes)?, over(no)?, k),
                Node::AtLeast(k, yes, no) => word(AT_LEAST, over(yes)?, over(no)?, k),
            });
        }
        Ok(words)
    }

    /// Puts an instruction behind all that may follow it.
    fn finish(&self, id: Id, finished: &mut Vec<Id>) {
        if finished.contains(&id) {
            return;
        }
        match self.nodes[id] {
            Node::Return(_) => {}
            Node::Load(_, next) | Node::And(_, next) => self.finish(next, finished),
            Node::Equal(_, yes, no) | Node::AtLeast(_, yes, no) => {
                self.finish(yes, finished);
                self.finish(no, finished);
            }
        }
        finished.push(id);
    }
}
