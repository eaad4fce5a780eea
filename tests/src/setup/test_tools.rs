//! What `cargo model test` takes beyond the model: the tools that tests call.

use std::path::PathBuf;

use super::cache::{Cache, Key, LockedEntry};
use super::daemons;
use super::error::{Error, FileError};
use super::labs;
use super::linux;
use super::machine::Machine;
use super::options::Options;
use super::packages;
use super::process;
use super::progress::Progress;
use super::signals::SignalHandlers;
use super::toolchain::Toolchain;

/// Arm's tool for its FVPs, by its name and version at PyPI: it processes the overlay for one.
const SHRINKWRAP: &str = "shrinkwraptool==2026.9.2";

/// Tools that are not of Debian.
#[derive(Default)]
pub struct TestTools {
    /// The directory in which Python finds Shrinkwrap; none where nothing is installed.
    pub shrinkwrap: Option<PathBuf>,
    /// The directory with the daemons that serve devices by vhost-user.
    pub daemons: Option<PathBuf>,
    /// The directory with the tools of labs, and schemas.
    pub labs: Option<PathBuf>,
    /// Debian's package of Linux' sources, for who builds another kernel of them.
    pub linux: Option<PathBuf>,
    held: Vec<LockedEntry>,
}

/// Installs what is missing of them. Where there is no apt, the tests say what they miss.
///
/// # Errors
///
/// They can't be installed.
pub fn install() -> Result<TestTools, Error> {
    let _handlers = SignalHandlers::install().at("watch for signals to", "this process")?;
    let machine = Machine::detect();
    if !machine.is_debian {
        return Ok(TestTools::default());
    }
    let cache = Cache::open()?;
    let progress = Progress::start();
    let step = progress.step("test tools", cache.log("test-tools"));
    let needs: &[_] =
        if machine.is_arm { &[packages::TEST] } else { &[packages::TEST, packages::EMULATE] };
    packages::install(&machine, &cache, &step, needs)?;
    let key = Key::new().with("package", SHRINKWRAP);
    let held = cache.entry("shrinkwrap", key).get(&step, |dirs| {
        let mut pip = process::command("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-compile", SHRINKWRAP, "--target"]);
        process::run(&step, pip.arg(&dirs.out), |_| {})
    })?;
    Ok(TestTools { shrinkwrap: Some(held.dir.clone()), held: vec![held], ..TestTools::default() })
}

impl TestTools {
    /// Builds the daemons, by what built the model.
    ///
    /// # Errors
    ///
    /// They can't be had or built.
    pub fn add_daemons(&mut self, toolchain: &Toolchain, options: &Options) -> Result<(), Error> {
        let _handlers = SignalHandlers::install().at("watch for signals to", "this process")?;
        let held = daemons::build(toolchain, options)?;
        self.daemons = Some(held.dir.clone());
        self.held.push(held);
        Ok(())
    }

    /// Installs the tools of labs.
    ///
    /// # Errors
    ///
    /// They can't be had.
    pub fn add_labs(&mut self, options: &Options) -> Result<(), Error> {
        let _handlers = SignalHandlers::install().at("watch for signals to", "this process")?;
        if let Some(held) = labs::install(options)? {
            self.labs = Some(held.dir.clone());
            self.held.push(held);
        }
        Ok(())
    }
    /// Downloads the sources of Linux, and installs what builds it.
    ///
    /// # Errors
    ///
    /// They can't be had.
    pub fn add_linux(&mut self, options: &Options) -> Result<(), Error> {
        let _handlers = SignalHandlers::install().at("watch for signals to", "this process")?;
        if let Some((held, package)) = linux::sources(options)? {
            self.linux = Some(package);
            self.held.push(held);
        }
        Ok(())
    }
}
