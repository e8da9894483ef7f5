//! The commands of this repository: `cargo xtask up`, `test`, `bench`, `fuzz` and `check`.

mod bench;
mod build;
mod check;
mod demonstration;
mod fuzz;
mod packages;
mod process;
mod up;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// What a task answers when it could not do its work: one sentence.
type Outcome = Result<(), String>;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tries and tests Lifeboat")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start a trial site on this machine, with a demonstration server unless --disk names disks.
    Up(up::Options),
    /// Run all tests, installing what they need.
    Test {
        /// Passed on to `cargo test`, such as a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the tests with whole Debian servers in virtual machines, of which `test` runs one: half an hour.
    TestMachine,
    /// Measure, with peers in the same run, and say whether the goals are reached.
    Bench(bench::Options),
    /// Feed the parsers of bytes from outside with what they have not seen yet.
    Fuzz(fuzz::Options),
    /// Check form: formatting, clippy, licences, directions of dependency, checked-in products.
    Check,
    /// Install the Debian packages that the other tasks need, and say which.
    Packages,
    /// Build the two programs as they are shipped and print where they are.
    Build,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Up(options) => up::run(&options),
        Task::Test { arguments } => test(&arguments),
        Task::TestMachine => test_machine(),
        Task::Bench(options) => bench::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Check => check::run(),
        Task::Packages => packages::install(packages::ALL),
        Task::Build => build::shipped().map(|programs| {
            println!("{}\n{}", programs.lifeboat.display(), programs.agent.display());
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("cargo xtask: {sentence}");
            ExitCode::from(2)
        }
    }
}

fn test(arguments: &[String]) -> Outcome {
    packages::install(packages::ALL)?;
    packages::need_root("the tests attach loop devices and load eBPF programs")?;
    // The end-to-end tests run the real programs, which `cargo test` alone does not always build.
    process::run("cargo", ["build", "--workspace", "--bins"])?;
    // All of them, whatever fails: a run takes long.
    let mut words = ["test", "--workspace", "--no-fail-fast"].map(str::to_owned).to_vec();
    words.extend_from_slice(arguments);
    process::run("cargo", words)
}

fn test_machine() -> Outcome {
    packages::install(packages::ALL)?;
    packages::need_root("the test makes the disk of a server")?;
    process::run("cargo", ["build", "--workspace", "--bins"])?;
    let agent = build::static_agent()?;
    let mut test = Command::new("cargo");
    test.args(["test", "--workspace", "--test", "machine", "--", "--test-threads=1", "--include-ignored"]);
    process::finish(test.env("LIFEBOAT_AGENT", agent).current_dir(root()))
}

/// The root of the repository.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or(here.clone(), std::path::Path::to_path_buf)
}
