//! The units of systemd that come with the three roles.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::Command;

/// systemd looks at a unit, with this program in place of the one that is installed later.
fn verify(unit: &str, program: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(unit);
    let text = std::fs::read_to_string(&source).unwrap();
    assert!(text.contains(&format!("ExecStart={program} ")), "{unit} starts another program");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join(source.file_name().unwrap());
    std::fs::write(&copy, text.replace(program, env!("CARGO_BIN_EXE_lifeboat-agent"))).unwrap();
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    // It looks at the units that are installed on this machine as well.
    let name = copy.file_name().unwrap().to_str().unwrap();
    let about: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
    assert!(verified.status.success() && about.is_empty(), "{unit}: {said}");
}

#[test]
fn the_units_of_all_roles_are_right() {
    verify("agent/lifeboat-agent.service", "/usr/local/sbin/lifeboat-agent");
    verify("agent/lifeboat-fit.service", "/usr/local/sbin/lifeboat-agent");
    verify("process-server/lifeboat-process-server.service", "/usr/local/bin/lifeboat");
    verify("vault/lifeboat-vault.service", "/usr/local/bin/lifeboat");
}
