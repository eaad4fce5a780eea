//! The search for a system call's number.
//!
//! When a thread takes a filter, the kernel walks it once for each number that there is, to find those
//! that are allowed whatever their arguments: for these it runs no filter afterwards
//! (`seccomp_cache_prepare` in the kernel's kernel/seccomp.c). So it is the way of all numbers that
//! counts, most of which are forbidden, and then the number of instructions, each of which is checked and
//! translated.

use super::program::{Call, Graph, Id};

/// How many numbers there are, about (asm-generic/unistd.h).
const NUMBERS: u32 = 470;

/// What an instruction of the program costs the kernel beside what a step of a walk costs it, as it
/// was measured.
const INSTRUCTION: u64 = 27;

/// The same where nothing is walked, and the thread makes some calls.
const UNCACHED_INSTRUCTION: u64 = 200;

/// How calls are told apart.
#[derive(Clone, Copy)]
enum Choice {
    /// One after the other.
    Chain,
    /// By whether the number is at least that of this call.
    Split(usize),
}

/// The cheapest search for these calls, which are in the order of their numbers.
pub fn search(graph: &mut Graph, calls: &[Call], uncached: bool) -> Id {
    let best = best(calls, if uncached { UNCACHED_INSTRUCTION } else { INSTRUCTION });
    branch(graph, calls, &best, 0, calls.len())
}

/// For calls `from..to`, at `from * (calls + 1) + to`: what they cost, and by which choice. `instruction` is
/// what one costs beside a step.
fn best(calls: &[Call], instruction: u64) -> Vec<(u64, Choice)> {
    let count = calls.len();
    let start = |at: usize| match calls.get(at) {
        _ if at == 0 => 0,
        Some(call) => call.number,
        None => NUMBERS.max(calls.last().map_or(0, |call| call.number + 1)),
    };
    let mut best = vec![(0, Choice::Chain); (count + 1) * (count + 1)];
    for length in 1..=count {
        for from in 0..=count - length {
            let to = from + length;
            let width = u64::from(start(to) - start(from));
            let chain = (length as u64 * (width + instruction), Choice::Chain);
            let cost = |at: usize| best[from * (count + 1) + at].0 + best[at * (count + 1) + to].0;
            let splits =
                (from + 1..to).map(|at| (width + instruction + cost(at), Choice::Split(at)));
            best[from * (count + 1) + to] =
                splits.chain([chain]).min_by_key(|(cost, _)| *cost).unwrap_or(chain);
        }
    }
    best
}

fn branch(graph: &mut Graph, calls: &[Call], best: &[(u64, Choice)], from: usize, to: usize) -> Id {
    match best[from * (calls.len() + 1) + to].1 {
        Choice::Chain => {
            let kill = graph.kill();
            let reversed = calls[from..to].iter().rev();
            reversed.fold(kill, |no, call| graph.equal(call.number, call.body, no))
        }
        Choice::Split(at) => {
            let low = branch(graph, calls, best, from, at);
            let high = branch(graph, calls, best, at, to);
            graph.at_least(calls[at].number, high, low)
        }
    }
}
