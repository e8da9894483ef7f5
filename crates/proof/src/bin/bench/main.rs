//! `lifeboat-bench`: measures Lifeboat beside its peers, in the same run, on this machine.
//!
//! Each bench prints one table: measured value, peer's value, ratio, goal, reached or not. It never
//! fails because a goal is not reached.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

mod agent;
mod boot;
mod capture;
mod delta;
mod failover;
mod gateway;
mod image;
mod initial;
mod load;
mod process;
mod replication;
mod roles;
mod rpo;
mod simulated;
mod table;
mod tool;
mod volume;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use table::Table;

#[derive(Parser)]
#[command(name = "lifeboat-bench", about = "Measures Lifeboat beside its peers")]
struct Arguments {
    /// Which one; all of them, one after the other, when absent.
    #[arg(value_enum)]
    name: Option<Bench>,
    /// Small sizes and one run each, to see that it works. The figures mean little.
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Bench {
    /// PostgreSQL's throughput with and without protection, and the window of points.
    Capture,
    /// The age of the newest committed point under load.
    Rpo,
    /// What the agent takes of its server under that load.
    Agent,
    /// The first full copy, beside a pipeline of tools and beside backup programs.
    Initial,
    /// A small change, beside the same programs.
    Delta,
    /// Opening and reading a point, beside qemu-nbd.
    Volume,
    /// Many agents into one process server.
    Gateway,
    /// From the command to the guest's first instruction, and guests on volumes.
    Failover,
}

impl Bench {
    fn run(self, quick: bool) -> Table {
        match self {
            Self::Capture => capture::run(quick),
            Self::Rpo => rpo::run(quick),
            Self::Agent => agent::run(quick),
            Self::Initial => initial::run(quick),
            Self::Delta => delta::run(quick),
            Self::Volume => volume::run(quick),
            Self::Gateway => gateway::run(quick),
            Self::Failover => failover::run(quick),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let benches = arguments.name.map_or_else(|| Bench::value_variants().to_vec(), |name| vec![name]);
    for bench in benches {
        bench.run(arguments.quick).print();
    }
    ExitCode::SUCCESS
}
