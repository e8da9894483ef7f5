//! This machine: programs, places, waiting.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take before the test fails with what was last seen.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The programs under test: those of the build that this one belongs to.
pub struct Programs {
    pub lifeboat: PathBuf,
    pub agent: PathBuf,
}

impl Programs {
    /// Finds them. `LIFEBOAT_AGENT` names the agent where it does not lie beside `lifeboat`, such as the static one
    /// that is shipped. The other one runs on servers of the same release too.
    ///
    /// # Panics
    /// When they are not built.
    pub fn find() -> Self {
        let own = std::env::current_exe().unwrap();
        // A test lies in target/PROFILE/deps, other programs in target/PROFILE.
        let place = |name: &str| {
            let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.exists());
            found.unwrap_or_else(|| {
                panic!("there is no {name} beside {}: cargo build --workspace --bins", own.display())
            })
        };
        let agent = std::env::var_os("LIFEBOAT_AGENT").map(PathBuf::from);
        Self { lifeboat: place("lifeboat"), agent: agent.unwrap_or_else(|| place("lifeboat-agent")) }
    }
}

/// A directory on a real file system: direct reads do not work on tmpfs.
pub fn scratch() -> PathBuf {
    let dir = Programs::find().lifeboat.with_file_name("scratch");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Runs a command that must succeed, and answers what it printed.
pub fn run<S: AsRef<OsStr>>(program: &str, words: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    let output = command
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Asks again and again until there is an answer.
pub fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, ask)
}

/// As [`wait_for`], for what may take longer or must not take so long.
pub fn wait_within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < limit, "waited {} s for {what}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}
