//! A program of the kernel's classic BPF (the kernel's Documentation/networking/filter.rst).

use seccompiler::sock_filter;

/// Instructions, as in the kernel's include/uapi/linux/bpf_common.h.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const CLASS: u16 = 0x07;
const CLASS_JUMP: u16 = 0x05;
const CLASS_RETURN: u16 = 0x06;

/// What seccompiler puts before the instructions for the first system call: the architecture is
/// compared, and the call's number loaded.
const PROLOGUE: usize = 4;

/// Instructions.
#[derive(Default)]
pub struct Program(Vec<sock_filter>);

impl Program {
    /// Appends those for a system call, which are a whole filter of seccompiler's. Who reaches their end
    /// has made another call.
    pub fn append(&mut self, filter: &[sock_filter]) -> Result<(), String> {
        let (prologue, rest) = filter.split_at_checked(PROLOGUE).ok_or("a filter without calls")?;
        let (end, chain) = rest.split_last().ok_or("a filter without calls")?;
        let loads = |at: usize| prologue.get(at).is_some_and(|one| one.code == LOAD);
        if !loads(0) || !loads(3) || end.code & CLASS != CLASS_RETURN {
            return Err("seccompiler lays filters out in another way".to_owned());
        }
        if self.0.is_empty() {
            self.0.extend_from_slice(prologue);
        } else if self.0.pop().map(|end| end.k) != Some(end.k) {
            return Err("filters end in different ways".to_owned());
        }
        self.0.extend_from_slice(chain);
        self.0.push(end.clone());
        Ok(())
    }

    /// The same without jumps to jumps and what is never reached.
    pub fn finish(&self) -> Result<Self, String> {
        let code = &self.0;
        // Where one arrives in the end who goes to an instruction.
        let end_of = |mut at: usize| {
            while let Some(jump) = code.get(at).filter(|one| one.code == JUMP) {
                at += 1 + jump.k as usize;
            }
            at
        };
        let targets = |at: usize| match code.get(at) {
            Some(one) if one.code & CLASS == CLASS_RETURN => Vec::new(),
            Some(one) if one.code & CLASS == CLASS_JUMP => {
                [one.jt, one.jf].map(|over| end_of(at + 1 + usize::from(over))).to_vec()
            }
            _ => vec![end_of(at + 1)],
        };
        let (mut reached, mut pending) = (vec![false; code.len()], vec![end_of(0)]);
        while let Some(at) = pending.pop() {
            let seen = reached.get_mut(at).ok_or("a jump beyond the end")?;
            if !std::mem::replace(seen, true) {
                pending.extend(targets(at));
            }
        }
        let kept: Vec<usize> = (0..code.len()).filter(|at| reached[*at]).collect();
        let place = |at: usize| kept.binary_search(&at).map_err(|_| "a jump to nowhere");
        let mut squeezed = Vec::new();
        for (now, at) in kept.iter().enumerate() {
            let mut one = code[*at].clone();
            let targets = targets(*at).into_iter().map(place).collect::<Result<Vec<_>, _>>()?;
            match targets[..] {
                [] => {}
                [next] if next == now + 1 => {}
                [yes, no] => {
                    let over = |to: usize| u8::try_from(to - now - 1).map_err(|e| e.to_string());
                    (one.jt, one.jf) = (over(yes)?, over(no)?);
                }
                _ => return Err("seccompiler jumps where none is expected".to_owned()),
            }
            squeezed.push(one);
        }
        Ok(Self(squeezed))
    }

    /// The instructions as `struct sock_filter` has them in memory, on a little-endian machine.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().map(|one| {
            u64::from(one.code)
                | u64::from(one.jt) << 16
                | u64::from(one.jf) << 24
                | u64::from(one.k) << 32
        })
    }
}
