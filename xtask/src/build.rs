//! Building the two programs as they are shipped.

use std::path::PathBuf;
use std::process::Command;

use crate::{Outcome, process, root};

/// Where the programs are.
pub struct Programs {
    pub lifeboat: PathBuf,
    pub agent: PathBuf,
}

/// What is built for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds both with optimisation, for running them here.
pub fn release() -> Result<Programs, String> {
    process::run("cargo", ["build", "--release", "--package", "lifeboat", "--package", "lifeboat-agent"])?;
    let dir = target_dir().join("release");
    Ok(Programs { lifeboat: dir.join("lifeboat"), agent: dir.join("lifeboat-agent") })
}

/// Builds both without optimisation.
pub fn debug() -> Result<Programs, String> {
    // As the tests build them, so that neither builds anew what the other has.
    process::run("cargo", ["build", "--workspace", "--bin", "lifeboat", "--bin", "lifeboat-agent"])?;
    let dir = target_dir().join("debug");
    Ok(Programs { lifeboat: dir.join("lifeboat"), agent: dir.join("lifeboat-agent") })
}

/// Builds both as they are shipped: the agent as one static file, which takes a second build of
/// what the two share.
pub fn shipped() -> Result<Programs, String> {
    process::run("cargo", ["build", "--release", "--package", "lifeboat"])?;
    static_agent_with(&["--release"])?;
    Ok(Programs { lifeboat: target_dir().join("release/lifeboat"), agent: static_agent_of("release") })
}

/// Builds the agent as one static file, without optimisation, for the tests on other machines.
pub fn static_agent() -> Result<PathBuf, String> {
    static_agent_with(&[])?;
    Ok(static_agent_of("debug"))
}

fn static_agent_of(profile: &str) -> PathBuf {
    target_dir().join(TARGET).join(profile).join("lifeboat-agent")
}

fn static_agent_with(words: &[&str]) -> Outcome {
    // A target is named so that the flag reaches the agent's crates only, not build scripts and macros.
    process::finish(
        Command::new("cargo")
            .args(["build", "--package", "lifeboat-agent", "--target", TARGET])
            .args(words)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .current_dir(root()),
    )
}

/// Builds the benchmarks' program, which runs those two.
pub fn bench() -> Result<PathBuf, String> {
    proof("lifeboat-bench")
}

/// Builds the program of the demonstration server in a machine of its own.
pub fn demonstration() -> Result<PathBuf, String> {
    proof("lifeboat-demonstration")
}

fn proof(name: &str) -> Result<PathBuf, String> {
    process::run("cargo", ["build", "--release", "--package", "lifeboat-proof", "--bin", name])?;
    Ok(target_dir().join("release").join(name))
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty());
    // A relative one counts from where cargo runs, which is the root.
    root().join(named.unwrap_or_else(|| "target".into()))
}
