//! The checked-in objects belong to the checked-in source.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::Command;

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf"))
}

#[test]
fn digests_match_source_and_objects() {
    let check = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", "objects.sha256"])
        .current_dir(folder())
        .output()
        .unwrap();
    assert!(
        check.status.success(),
        "run crates/tracker/bpf/build.sh and commit what it writes: {}{}",
        String::from_utf8_lossy(&check.stdout),
        String::from_utf8_lossy(&check.stderr)
    );
}

/// Another version of clang makes other bytes; the recorded one must make the same.
#[test]
fn the_recorded_compiler_makes_the_same_objects() {
    let recorded = std::fs::read_to_string(folder().join("compiler.txt")).unwrap();
    let Ok(output) = Command::new("clang").arg("--version").output() else {
        eprintln!("no clang here: the objects are only checked by their digests");
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let built = Command::new(folder().join("build.sh")).arg(out.path()).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    if !String::from_utf8_lossy(&output.stdout).starts_with(recorded.trim_end()) {
        eprintln!("another clang than {recorded}: the source compiles, the bytes are not compared");
        return;
    }
    for object in ["atomic.bpf.o", "plain.bpf.o"] {
        let fresh = std::fs::read(out.path().join(object)).unwrap();
        let kept = std::fs::read(folder().join(object)).unwrap();
        assert!(fresh == kept, "{object} is not what {recorded} makes of the source");
    }
}
