//! The filters as the build has compiled them: `vmm/build/seccomp`.

include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));
