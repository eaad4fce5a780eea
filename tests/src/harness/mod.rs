//! The harness of the system tests.
//!
//! A system test is a short scenario: boot a model host with these devices and parameters, run
//! strait with these arguments, wait for this, assert that.
//!
//! ```no_run
//! use tests::harness::{Board, PLATFORM_DMA, TestResult};
//!
//! fn a_guest_drives_its_dma_controller() -> TestResult {
//!     let host = Board::new().cpus(2).boot()?;
//!     host.bind(PLATFORM_DMA[0])?;
//!     let mut guest = host.guest(&format!("--vfio-platform {}", PLATFORM_DMA[0]))?;
//!     assert!(guest.log_of("PL330")?.contains("Loaded driver"));
//!     Ok(())
//! }
//! ```
//!
//! - [`Board`] is the modelled machine before it is switched on, [`Host`] the Linux that runs on
//!   it, [`Process`] a program on that host, [`Guest`] a strait whose guest offers a shell.
//! - Commands travel over a virtio-serial port to an agent ([`protocol`]), apart from the consoles.
//! - Everything said by anybody is kept with time stamps in a [`Transcript`]; when a test fails
//!   it is printed and the file that holds it is named.
//! - Nothing waits without a deadline, and QEMU dies with the test, however that ends.

mod bind;
mod board;
mod calls;
mod channel;
mod costs;
mod counters;
mod cpio;
mod deadline;
mod debian;
mod dmatest;
mod efi;
mod failure;
mod forward;
mod guest;
mod host;
pub(crate) mod initramfs;
mod interrupts;
mod overlay;
pub mod payload;
mod process;
pub mod protocol;
mod qemu;
mod steady;
mod symbols;
mod traffic;
mod transcript;
mod uart;

pub use bind::Bus;
pub use board::Board;
pub use costs::Costs;
pub use counters::{ExitCounts, ThreadWakeups};
pub use dmatest::{DmaTest, Summary};
pub use failure::{Failure, TestResult};
pub use forward::Forward;
pub use guest::{Guest, Launch};
pub use host::{Answer, Host};
pub use interrupts::Interrupts;
pub use overlay::{compile_overlay, overlay};
pub use process::Process;
pub use steady::SteadyState;
pub use symbols::symbol_file;
pub use traffic::exchange;
pub use transcript::{TIMES, Transcript};
pub use uart::Uart;

/// The two ways to an IOMMU, as `--iommu` has them; without it, strait takes the first here.
pub const BACKENDS: [&str; 2] = ["iommufd", "container"];

/// The model's DMA controllers on the platform bus, by the names sysfs gives them.
pub const PLATFORM_DMA: [&str; 2] = ["2c0a0000.dma", "2c0b0000.dma"];

/// The model's DMA controllers on the AMBA bus.
pub const AMBA_DMA: [&str; 2] = ["2c0c0000.dma", "2c0d0000.dma"];

/// The model's assignable UART, a PL011, where the board has it ([`Board::uart`]).
pub const UART: &str = "2c0e0000.serial";

/// Another PL011 with the same SPI, where the board has it ([`Board::shared_uart`]).
pub const SHARED_UART: &str = "2c0f0000.serial";

/// The model's assignable network card, a Cadence GEM, where the board has it ([`Board::ethernet`]).
pub const ETHERNET: &str = "2c100000.ethernet";

/// The model's assignable SD host controller, an Arasan's, where the board has it ([`Board::sd_card`]).
pub const SD_HOST: &str = "2c110000.mmc";
