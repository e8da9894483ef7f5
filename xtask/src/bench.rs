//! `cargo xtask bench`: builds everything with optimisation and runs a benchmark.

use std::process::Command;

use clap::Args;

use crate::{Outcome, build, packages, process};

#[derive(Args)]
pub struct Options {
    /// Which one: capture, rpo, agent, initial, delta, volume or gateway; all of them when absent.
    name: Option<String>,
    /// Small sizes and one run each, to see that it works. The figures mean little.
    #[arg(long)]
    quick: bool,
}

pub fn run(options: &Options) -> Outcome {
    packages::need_root("benchmarks attach loop devices and load eBPF programs")?;
    packages::install(packages::ALL)?;
    packages::install(packages::PEERS)?;
    let programs = build::release()?;
    let mut bench = Command::new(build::bench()?);
    bench.env("LIFEBOAT_AGENT", &programs.agent);
    if let Some(name) = &options.name {
        bench.arg(name);
    }
    if options.quick {
        bench.arg("--quick");
    }
    process::finish(&mut bench)
}
