//! `cargo xtask check`: form, and what must stay true of the whole repository.

use crate::{Outcome, process};

/// Crates that a change passes on its way, and what none of them may depend on.
const DATA_PATH: &[&str] = &[
    "lifeboat-model",
    "lifeboat-hrl",
    "lifeboat-wire",
    "lifeboat-tracker",
    "lifeboat-capture",
    "lifeboat-agent",
    "lifeboat-process-server",
    "lifeboat-volume",
    "lifeboat-nbd",
    "lifeboat-compute",
];
const CONTROL: &[&str] = &["lifeboat-api", "lifeboat-vault", "lifeboat-client", "lifeboat"];

const FUZZ: &str = "fuzz/Cargo.toml";

pub fn run() -> Outcome {
    process::run("cargo", ["fmt", "--all", "--check"])?;
    // The targets for fuzzing are a workspace of their own, whose lock no other build looks at.
    process::output("cargo", ["metadata", "--locked", "--format-version=1", "--manifest-path", FUZZ])
        .map_err(|error| format!("fuzz/Cargo.lock is not what the crates need: {error}"))?;
    process::run("cargo", ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    directions()?;
    if process::output("cargo", ["deny", "--version"]).is_err() {
        println!("Installing cargo-deny");
        process::run("cargo", ["install", "--locked", "cargo-deny"])?;
    }
    process::run("cargo", ["deny", "check", "bans", "licenses", "sources"])
}

/// Fails when a crate of the data path depends on one of control.
fn directions() -> Outcome {
    for package in DATA_PATH {
        let tree = process::output(
            "cargo",
            ["tree", "--package", package, "--edges", "normal", "--prefix", "none"],
        )?;
        let wrong =
            tree.lines().filter_map(|line| line.split(' ').next()).find(|name| CONTROL.contains(name));
        if let Some(control) = wrong {
            return Err(format!(
                "{package} is on the data path and must not depend on {control}, which is control"
            ));
        }
    }
    Ok(())
}
