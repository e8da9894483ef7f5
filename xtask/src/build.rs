//! Building the two programs as they are shipped.

use std::path::PathBuf;
use std::process::Command;

use crate::{process, root};

/// Where the programs are.
pub struct Programs {
    pub lifeboat: PathBuf,
    pub agent: PathBuf,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds both with optimisation, for running them here.
pub fn release() -> Result<Programs, String> {
    process::run("cargo", ["build", "--release", "--package", "lifeboat", "--package", "lifeboat-agent"])?;
    let dir = target_dir().join("release");
    Ok(Programs { lifeboat: dir.join("lifeboat"), agent: dir.join("lifeboat-agent") })
}

/// Builds both as they are shipped: the agent as one static file, which takes a second build of
/// what the two share.
pub fn shipped() -> Result<Programs, String> {
    process::run("cargo", ["build", "--release", "--package", "lifeboat"])?;
    // A target is named so that the flag reaches the agent's crates only, not build scripts and macros.
    process::finish(
        Command::new("cargo")
            .args(["build", "--release", "--package", "lifeboat-agent", "--target", TARGET])
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .current_dir(root()),
    )?;
    Ok(Programs {
        lifeboat: target_dir().join("release/lifeboat"),
        agent: target_dir().join(TARGET).join("release/lifeboat-agent"),
    })
}

/// Builds the benchmarks' program, which runs those two.
pub fn bench() -> Result<PathBuf, String> {
    process::run("cargo", ["build", "--release", "--package", "lifeboat-proof", "--bin", "lifeboat-bench"])?;
    Ok(target_dir().join("release/lifeboat-bench"))
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty());
    // A relative one counts from where cargo runs, which is the root.
    root().join(named.unwrap_or_else(|| "target".into()))
}
