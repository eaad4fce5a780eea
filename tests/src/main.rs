//! `cargo model`: the system model as a tool.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tests::bench::{self, Peer};
use tests::setup::{self, Options, Purpose, workspace};
use tests::suite;
use tests::{calls, demo, link_order, manual, package, shell};

/// The system model: an Arm board in QEMU with DMA controllers behind an SMMU, a Linux host with
/// KVM on it, and strait in that host.
#[derive(Parser)]
#[command(name = "cargo model", bin_name = "cargo model")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Make all that the model needs (the other commands do so first)
    Setup,
    /// Build strait for 64-bit Arm
    Build,
    /// Boot a host and a guest that drives a DMA controller of its own, and say what it costs
    Demo,
    /// A model host to look around in, with strait, kernels and initrds at hand; Ctrl-A x leaves
    Shell,
    /// Run every test, unit and system
    Test {
        /// Only the tests whose names contain this
        filter: Option<String>,
        /// Run long tests at full length
        #[arg(long)]
        soak: bool,
    },
    /// Measure what strait costs, counting instructions
    Bench {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Another VMM to measure: its static arm64 binary and its arguments, with {kernel} and
        /// {initrd} filled in; the initrd powers the guest off
        #[arg(long, value_name = "NAME='COMMAND'")]
        peer: Vec<Peer>,
    },
    /// Look for inputs that make parts of strait fail, with libFuzzer
    Fuzz {
        /// Only this target [default: each of them in turn]
        target: Option<String>,
        /// How long each target runs
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Write the smallest inputs that reach all that is reached to tests/fuzz/corpora
        #[arg(long)]
        keep: bool,
    },
    /// Check format, lints and documentation, warnings denied
    Lint,
    /// Compare system calls that strait's threads made with what their filters allow
    Calls {
        /// The file that STRAIT_CALLS named in a run of tests
        file: PathBuf,
    },
    /// Find the functions that a run takes, and have them linked next to each other (vmm/run.ld)
    LinkOrder,
    /// Make the man page and the shells' completions from `strait --help`
    Manual,
    /// Make a Debian package and a tar archive with strait, its man page, completions and documents
    Package {
        /// Where to put them [default: target/model/package]
        directory: Option<PathBuf>,
    },
    /// Remove what the present clone doesn't use from the cache
    Clean {
        /// Remove everything
        #[arg(long)]
        all: bool,
    },
}

/// The exit status that a shell gives to what Ctrl-C ended: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let Cli { command, options } = Cli::parse();
    match run(command, &options) {
        Ok(code) => code,
        Err(error) => {
            report(error.as_ref());
            let is_interrupt =
                matches!(error.downcast_ref::<setup::Error>(), Some(setup::Error::Interrupted));
            if is_interrupt { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

fn run(command: Command, options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Setup => {
            let model = setup::run(options, Purpose::Tests)?;
            eprintln!(
                "the model is ready; {} says where its parts lie",
                model.description.display()
            );
        }
        Command::Build => println!("{}", setup::build(options)?.display()),
        Command::Demo => {
            let model = setup::run(options, Purpose::Use)?;
            return demo::run(&model.artifacts);
        }
        Command::Shell => {
            let model = setup::run(options, Purpose::Use)?;
            return shell::run(&model.artifacts);
        }
        Command::Test { filter, soak } => {
            let mut tools = setup::test_tools::install()?;
            let purpose = if soak { Purpose::Soak } else { Purpose::Tests };
            let model = setup::run(options, purpose)?;
            tools.add_daemons(&model.toolchain, options)?;
            tools.add_labs(options)?;
            if soak {
                tools.add_linux(options)?;
            }
            return suite::run(&model, &tools, filter.as_deref(), soak);
        }
        Command::Bench { json, peer } => {
            let model = setup::run(options, Purpose::Use)?;
            return bench::run(&model.artifacts, &peer, json);
        }
        Command::Fuzz { target, seconds, keep } => {
            setup::fuzz::run(options, target.as_deref(), seconds, keep)?;
        }
        Command::Lint => setup::lint::run(options)?,
        Command::Calls { file } => print!("{}", calls::report(&file)?),
        Command::LinkOrder => {
            let model = setup::run(options, Purpose::Use)?;
            println!("{}", link_order::write(&model)?.display());
        }
        Command::Manual => {
            setup::test_tools::install()?;
            for path in manual::write(&setup::build(options)?)? {
                println!("{}", path.display());
            }
        }
        Command::Package { directory } => {
            let directory = directory.unwrap_or_else(|| workspace::target_dir().join("package"));
            for path in package::write(&setup::build(options)?, &directory)? {
                println!("{}", path.display());
            }
        }
        Command::Clean { all } => setup::clean::run(all)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what failed and why. An error may close with lines of help; its causes come before them.
fn report(error: &dyn Error) {
    let text = error.to_string();
    let (what, help) = text.find("\n  help:").map_or((text.as_str(), ""), |at| text.split_at(at));
    eprint!("error: {what}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!("{help}");
}
