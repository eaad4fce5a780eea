//! What the programs answer, by a machine that runs them as the kernel does.

use std::fs;
use std::path::Path;

use super::*;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
/// 64-bit Arm (linux/audit.h).
const ARCH: u32 = 0xc000_00b7;

/// System calls of 64-bit Arm (asm-generic/unistd.h).
const IOCTL: u32 = 29;
const OPENAT: u32 = 56;
const MMAP: u32 = 222;
const MPROTECT: u32 = 226;
const MADVISE: u32 = 233;

/// What no thread may ask for: openat, openat2, open_by_handle_at, socket, connect, bind, clone, clone3,
/// execve, execveat, ptrace, process_vm_writev, bpf, seccomp, mount, unshare, setns, init_module,
/// perf_event_open, io_uring_setup, userfaultfd, keyctl, kexec_load, chroot, pivot_root, memfd_create,
/// pkey_mprotect, shmat, setuid, capset, prctl, personality, mknodat, unlinkat, renameat2, symlinkat.
const FORBIDDEN: [u32; 37] = [
    OPENAT, 437, 265, 198, 203, 200, 220, 435, 221, 281, 117, 271, 280, 277, 40, 97, 268, 105, 241,
    425, 282, 219, 104, 51, 41, 279, 288, 196, 146, 91, 167, 92, 33, 35, 276, 36, 38,
];

/// What a program answers.
fn run(program: &[u64], arch: u32, nr: u32, arguments: [u64; 6]) -> u32 {
    steps(program, arch, nr, arguments).0
}

/// The same, and after how many instructions.
fn steps(program: &[u64], arch: u32, nr: u32, arguments: [u64; 6]) -> (u32, usize) {
    let low = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap();
    let load = |offset: u32| match offset {
        0 => nr,
        4 => arch,
        offset => {
            let argument = arguments[(offset as usize - 16) / 8];
            low(if offset % 8 == 0 { argument } else { argument >> 32 })
        }
    };
    let (mut at, mut accumulator) = (0, 0);
    for steps in 1.. {
        let word = program[at];
        let (code, yes, no) = (word & 0xffff, word >> 16 & 0xff, word >> 24 & 0xff);
        let value = low(word >> 32);
        let holds = match code {
            0x20 => {
                accumulator = load(value);
                None
            }
            0x54 => {
                accumulator &= value;
                None
            }
            0x15 => Some(accumulator == value),
            0x25 => Some(accumulator > value),
            0x35 => Some(accumulator >= value),
            0x06 => return (value, steps),
            other => panic!("instruction {other:#x}"),
        };
        let over = holds.map_or(0, |holds| if holds { yes } else { no });
        at += 1 + usize::try_from(over).unwrap();
    }
    unreachable!()
}

fn answer(program: &[u64], nr: u32, arguments: [u64; 6]) -> u32 {
    run(program, ARCH, nr, arguments)
}

#[test]
fn each_file_is_a_program_and_each_kind_has_one() {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("seccomp")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let filters = names.filter(|name| name.ends_with(".filter") && name != "common.filter");
    // Those of two kinds have another for guests without devices.
    assert_eq!(filters.count() + 2, programs::ALL.len());
    let device = [
        ThreadKind::Block,
        ThreadKind::Net,
        ThreadKind::Console,
        ThreadKind::Entropy,
        ThreadKind::Balloon,
        ThreadKind::Vhost,
        ThreadKind::Intx,
        ThreadKind::Flash,
        ThreadKind::VfioUser,
        ThreadKind::VhostUser,
    ];
    let kinds = [Kind::Vcpu, Kind::EventLoop, Kind::ConsoleFile, Kind::Gdb]
        .into_iter()
        .chain(device.map(Kind::Device));
    let plain = [Kind::Vcpu, Kind::EventLoop].map(|kind| kind.program(false));
    let programs: Vec<&[u64]> = kinds.map(|kind| kind.program(true)).chain(plain).collect();
    // Each kind's is its own, and none is left over.
    assert_eq!(programs.len(), programs::ALL.len());
    for (name, program) in programs::ALL {
        assert!(programs.iter().any(|one| std::ptr::eq(*one, *program)), "{name}");
        assert!(program.len() < 130, "{name}: {} instructions", program.len());
    }
}

#[test]
fn nothing_gets_a_thread_more_than_it_has() {
    for (name, program) in programs::ALL {
        for nr in FORBIDDEN {
            assert_eq!(answer(program, nr, [0; 6]), KILL_PROCESS, "{name}: {nr}");
        }
        // Another architecture's calls, and numbers that no call has.
        assert_eq!(run(program, 0x4000_0028, 64, [0; 6]), KILL_PROCESS, "{name}");
        assert_eq!(answer(program, u32::MAX, [0; 6]), KILL_PROCESS, "{name}");
    }
}

#[test]
fn without_devices_there_is_less() {
    for (kind, program) in [
        (Kind::Vcpu, programs::VCPU_PLAIN.as_slice()),
        (Kind::EventLoop, &programs::EVENT_LOOP_PLAIN),
    ] {
        assert!(program.len() * 3 < kind.program(true).len() * 2 + 30, "{}", program.len());
        // VFIO_DEVICE_RESET, VHOST_NET_SET_BACKEND, KVM_SET_USER_MEMORY_REGION.
        for request in [0x3b6f, 0x4008_af30, 0x4020_ae46] {
            let arguments = [3, request, 0, 0, 0, 0];
            assert_eq!(answer(program, IOCTL, arguments), KILL_PROCESS, "{request:#x}");
            assert_eq!(answer(kind.program(true), IOCTL, arguments), ALLOW, "{request:#x}");
        }
    }
}

#[test]
fn memory_is_never_executable() {
    for (name, program) in programs::ALL {
        for flags in [0x22, 0x4022, 0x32, 0x2, 0x1] {
            for nr in [MMAP, MPROTECT] {
                for protection in [4, 5, 7, 0x1_0000_0004] {
                    let arguments = [0, 4096, protection, flags, u64::MAX, 0];
                    assert_eq!(answer(program, nr, arguments), KILL_PROCESS, "{name}: {nr}");
                }
            }
        }
        let heap = [0, 4096, 3, 0x4022, u64::MAX, 0];
        assert_eq!(answer(program, MMAP, heap), ALLOW, "{name}");
        // MADV_DONTNEED, and MADV_MERGEABLE, by which guests could see each other's pages.
        assert_eq!(answer(program, MADVISE, [0, 4096, 4, 0, 0, 0]), ALLOW, "{name}");
        assert_eq!(answer(program, MADVISE, [0, 4096, 12, 0, 0, 0]), KILL_PROCESS, "{name}");
    }
}

#[test]
fn only_the_vcpus_threads_run_vcpus() {
    let run_vcpu = [3, 0xae80, 0, 0, 0, 0];
    for (name, program) in programs::ALL {
        let expected = if name.starts_with("vcpu") { ALLOW } else { KILL_PROCESS };
        assert_eq!(answer(program, IOCTL, run_vcpu), expected, "{name}");
        // KVM_CREATE_VM, TIOCSTI, VFIO_GROUP_GET_DEVICE_FD, TUNSETIFF.
        for request in [0xae01, 0x5412, 0x3b6a, 0x4004_54ca] {
            assert_eq!(answer(program, IOCTL, [3, request, 0, 0, 0, 0]), KILL_PROCESS, "{name}");
        }
    }
}

#[test]
fn a_vcpu_s_way_back_into_the_guest_is_short() {
    // Loads and comparisons: the request, the call's number, the architecture; and the answer.
    for program in [&programs::VCPU[..], &programs::VCPU_PLAIN] {
        assert_eq!(steps(program, ARCH, IOCTL, [3, 0xae80, 0, 0, 0, 0]), (ALLOW, 7));
    }
    let heap = [0, 4096, 3, 0x22, 0, 0];
    let calls = (0..500).filter(|nr| {
        let any = |request: u64| answer(&programs::VCPU, *nr, [0, request, 4, 0x22, 0, 0]) == ALLOW;
        [0xae80, 1030, 4].into_iter().any(any) || answer(&programs::VCPU, *nr, heap) == ALLOW
    });
    let calls = calls.count();
    assert!(calls <= 30, "{calls} system calls");
}
