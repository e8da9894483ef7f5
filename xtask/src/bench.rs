//! `cargo xtask bench`: builds everything with optimisation and runs a benchmark.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::{Outcome, build, packages, process};

/// The version that builds with the compiler that builds Lifeboat.
const RUSTIC_VERSION: &str = "0.11.4";

#[derive(Args)]
pub struct Options {
    /// Which one: capture, rpo, agent, initial, delta, volume, gateway or failover; all of them when absent.
    name: Option<String>,
    /// Small sizes and one run each, to see that it works. The figures mean little.
    #[arg(long)]
    quick: bool,
}

pub fn run(options: &Options) -> Outcome {
    packages::need_root("benchmarks attach loop devices and load eBPF programs")?;
    packages::install(packages::ALL)?;
    packages::install(packages::PEERS)?;
    if options.name.as_deref().is_none_or(|name| ["initial", "delta"].contains(&name)) {
        rustic();
    }
    let programs = build::release()?;
    let mut bench = Command::new(build::bench()?);
    bench.env("LIFEBOAT_AGENT", &programs.agent).env("PATH", path_with_peers());
    if let Some(name) = &options.name {
        bench.arg(name);
    }
    if options.quick {
        bench.arg("--quick");
    }
    process::finish(&mut bench)
}

/// Where peers are that Debian does not have.
fn peers_dir() -> PathBuf {
    build::target_dir().join("peers")
}

/// Builds rustic unless it is there. Without it the benchmarks say that it was not measured.
fn rustic() {
    let installed = Command::new("rustic").env("PATH", path_with_peers()).arg("--version").output().is_ok();
    if installed {
        return;
    }
    println!("Building rustic {RUSTIC_VERSION} (crate rustic-rs), which Lifeboat is measured against");
    let mut install = Command::new("cargo");
    install.args(["install", "--locked", "rustic-rs", "--version", RUSTIC_VERSION]);
    // Only the program: no lasting copy of its 400 crates.
    install.arg("--root").arg(peers_dir()).env_remove("CARGO_TARGET_DIR");
    if let Err(sentence) = process::finish(&mut install) {
        println!("rustic is left out: {sentence}");
    }
}

/// The search path of the benchmarks.
fn path_with_peers() -> OsString {
    let mut path = peers_dir().join("bin").into_os_string();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}
