//! `cargo xtask fuzz`: the targets in `fuzz/`, built with the compiler that builds everything else.
//!
//! The targets are those of cargo-fuzz, and `cargo fuzz run NAME` works where it and a nightly
//! compiler are installed. What it adds to the build is a handful of flags that the stable compiler
//! knows as well, all but the address sanitizer, which finds little in code without `unsafe`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::{Outcome, build, process, root};

#[derive(Args)]
pub struct Options {
    /// Which target; all of them when absent.
    name: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Leave out the targets that take long to build: what the agent, the vault and the volumes read.
    #[arg(long)]
    quick: bool,
}

/// Lets the fuzzer see which ways the code takes and what it compares; as cargo-fuzz has them.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// An input that takes longer is a failure.
const SECONDS_MAX: u32 = 10;
const MEMORY_MIB_MAX: u32 = 1024;
const INPUT_BYTES_MAX: u32 = 512 << 10;

pub fn run(options: &Options) -> Outcome {
    let place = build(options)?;
    let names = match &options.name {
        Some(name) => vec![name.clone()],
        None => targets(options)?,
    };
    for name in names {
        println!("Fuzzing {name} for {} s", options.seconds);
        fuzz(&place, &name, options.seconds)?;
    }
    Ok(())
}

fn build(options: &Options) -> Result<PathBuf, String> {
    let target_dir = build::target_dir().join("fuzz");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml"]);
    // A target is named so that build scripts and macros stay as they are.
    cargo.args(["--target", build::TARGET, "--target-dir"]).arg(&target_dir);
    match &options.name {
        Some(name) => cargo.args(["--bin", name]),
        None => cargo.arg("--bins"),
    };
    if !options.quick {
        cargo.args(["--features", "roles"]);
    }
    process::finish(cargo.env("RUSTFLAGS", FLAGS).current_dir(root()))?;
    Ok(target_dir.join(build::TARGET).join("release"))
}

/// Every target that was built, by name.
fn targets(options: &Options) -> Result<Vec<String>, String> {
    let manifest = root().join("fuzz/Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .map_err(|error| format!("cannot read {}: {error}", manifest.display()))?;
    let bins =
        text.split("[[bin]]").skip(1).filter(|bin| !options.quick || !bin.contains("required-features"));
    Ok(bins.filter_map(|bin| Some(bin.split("name = \"").nth(1)?.split('"').next()?.to_owned())).collect())
}

/// Runs a target on its seeds, which are checked in, and on what earlier runs have found.
fn fuzz(place: &Path, name: &str, seconds: u32) -> Outcome {
    let fuzz = root().join("fuzz");
    let corpus = made(&fuzz.join("corpus").join(name))?;
    let artifacts = made(&fuzz.join("artifacts").join(name))?;
    let seeds = fuzz.join("seeds").join(name);
    let mut prefix: OsString = "-artifact_prefix=".into();
    prefix.push(artifacts.join(""));
    let mut target = Command::new(place.join(name));
    target.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={SECONDS_MAX}"));
    target.arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}")).arg(format!("-max_len={INPUT_BYTES_MAX}"));
    target.args(["-print_final_stats=1", "-verbosity=0"]).arg(prefix).arg(&corpus);
    if seeds.exists() {
        target.arg(&seeds);
    }
    process::finish(target.current_dir(&fuzz))
        .map_err(|error| format!("{name} found something: {error}; the input is in {}", artifacts.display()))
}

fn made(dir: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
    Ok(dir.to_owned())
}
