//! Agent, process server, vault, network and object store in one process, driven by one seed.
//!
//! Real are the cores that carry the promises: the agent's engine, the process server's gateway
//! with its spool in a directory, the vault with its catalog, retention and manifests, and the
//! volume's reading of a point. Models are what they stand on: disks and their tracker, the lines
//! between the roles, the object store, the clocks.
//!
//! A seed determines everything: which faults there are in this run, the order of steps, where a
//! stream is cut, at which call the store fails or the vault is killed. Steps come one after the
//! other. After each of them [`check`] compares what the vault lists with what the model knows
//! was on the disks when the point was taken. At the end all faults stop, and the newest point must
//! become equal to the source.
//!
//! ```text
//! LIFEBOAT_SIM_SEED=7      run this seed only, and print its steps
//! LIFEBOAT_SIM_STEPS=40    with so many steps before its faults stop
//! LIFEBOAT_SIM_RUNS=1000   run so many seeds
//! LIFEBOAT_SIM_FIRST=5000  begin with this one
//! ```
//!
//! A run that fails is repeated with fewer and fewer steps before its faults stop, and the shortest
//! that still fails is printed.
#![allow(
    clippy::result_large_err,
    reason = "an answer that is refused is the rare case here, and nothing is quick"
)]
#![cfg(test)]

mod agent;
mod check;
mod content;
mod failover;
mod faults;
mod line;
mod model;
mod recovery_site;
mod runs;
mod site;
mod store;
mod world;
