//! Each target with what is kept of it, and for a short while with variations of that.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use fuzz::{TARGETS, corpus, find};

/// How long each target runs variations.
const TIME: Duration = Duration::from_secs(1);

/// The longest variation in bytes.
const MAX_SIZE: usize = 1024;

/// xorshift64 (Marsaglia, Xorshift RNGs).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    /// A variation of one of the inputs, perhaps with a part of another.
    fn vary(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let one = |random: &mut Self| match inputs.len() {
            0 => (0..random.below(200)).map(|_| random.byte()).collect(),
            count => inputs[random.below(count)].clone(),
        };
        let mut input = one(self);
        for _ in 0..self.below(6) {
            let at = self.below(input.len() + 1);
            match self.below(5) {
                0 => input.truncate(at),
                1 => input.insert(at, self.byte()),
                2 => {
                    let other = one(self);
                    let from = self.below(other.len() + 1);
                    input.splice(at.., other[from..].iter().copied());
                }
                3 => input.extend((0..self.below(16)).map(|_| self.byte())),
                _ if at < input.len() => input[at] = self.byte(),
                _ => {}
            }
        }
        input.truncate(MAX_SIZE);
        input
    }
}

fn run(target: &str, input: &[u8]) {
    let run = find(target).expect("there is such a target").run;
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(input))) {
        eprintln!("{target} fails with {}", corpus::encode(input));
        resume_unwind(panic);
    }
}

fn check(target: &str) {
    let inputs = corpus::read(target).unwrap();
    inputs.iter().for_each(|input| run(target, input));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let started = Instant::now();
    while started.elapsed() < TIME {
        run(target, &random.vary(&inputs));
    }
}

/// A test for each target.
macro_rules! targets {
    ($($test:ident $name:literal,)*) => {
        const TESTED: &[&str] = &[$($name),*];
        $(
            #[test]
            fn $test() {
                check($name);
            }
        )*
    };
}

targets! {
    command_line "command-line",
    console_clients "console-clients",
    control "control",
    gdb "gdb",
    host_tree "host-tree",
    initrd "initrd",
    kernel "kernel",
    overlay "overlay",
    pci "pci",
    platform_devices "platform-devices",
    scmi "scmi",
    vfio_user "vfio-user",
    vhost_user "vhost-user",
    virtio_balloon "virtio-balloon",
    virtio_block "virtio-block",
    virtio_console "virtio-console",
    virtio_entropy "virtio-entropy",
    virtio_net "virtio-net",
    virtio_pci "virtio-pci",
}

#[test]
fn each_target_has_a_test_and_a_corpus() {
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    assert_eq!(names, TESTED);
    assert_eq!(names, corpus::targets().unwrap());
}

#[test]
fn no_corpus_is_larger_than_is_kept() {
    for name in TESTED {
        let kept = corpus::of_file(&corpus::path(name)).unwrap();
        let size: usize = kept.iter().map(Vec::len).sum();
        assert!(size <= corpus::KEPT_SIZE, "{name}: {size} bytes");
    }
}
