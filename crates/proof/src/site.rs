//! A running trial site, driven through the command line.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::{LoopDisk, Programs, free_port, run, scratch, wait_for};

/// A running trial. Ended, with its tracking, when dropped.
pub struct Site {
    pub dir: PathBuf,
    trial: Option<Child>,
    disks: Vec<PathBuf>,
    /// By what the agent's machine reaches this one, when the agent is not here.
    remote_agent: Option<String>,
    /// The libvirt that runs machines; QEMU itself if none.
    libvirt: Option<String>,
    interval: String,
    _home: TempDir,
}

impl Site {
    /// Starts a trial that protects `disks`, and waits until the vault knows the server.
    pub fn start(disks: &[&LoopDisk], interval: &str) -> Self {
        Self::start_in(&scratch(), disks, interval)
    }

    /// As [`Self::start`], with all state of the site in a directory of `place`.
    pub fn start_in(place: &Path, disks: &[&LoopDisk], interval: &str) -> Self {
        let disks = disks.iter().map(|disk| disk.device.clone()).collect();
        Self::start_with(place, disks, None, None, interval)
    }

    /// Starts a trial for an agent that will be installed on another machine, which reaches this one
    /// at `host` and has `disk`.
    pub fn start_for_remote_agent(host: &str, disk: &str, interval: &str) -> Self {
        Self::start_with(&scratch(), vec![disk.into()], Some(host.to_owned()), None, interval)
    }

    /// As [`Self::start_for_remote_agent`], with machines that a libvirt runs.
    pub fn start_at_libvirt(host: &str, disk: &str, interval: &str, uri: String) -> Self {
        Self::start_with(&scratch(), vec![disk.into()], Some(host.to_owned()), Some(uri), interval)
    }

    /// What that agent needs: its settings and its certificate.
    pub fn remote_agent_dir(&self) -> PathBuf {
        self.dir.join("remote-agent")
    }

    fn start_with(
        place: &Path,
        disks: Vec<PathBuf>,
        remote_agent: Option<String>,
        libvirt: Option<String>,
        interval: &str,
    ) -> Self {
        let home = tempfile::Builder::new().prefix("lifeboat-site-").tempdir_in(place).unwrap();
        let mut site = Self {
            dir: home.path().join("site"),
            trial: None,
            disks,
            remote_agent,
            libvirt,
            interval: interval.to_owned(),
            _home: home,
        };
        site.resume();
        site
    }

    /// Starts the trial (again), with any free ports.
    pub fn resume(&mut self) {
        assert!(self.trial.is_none(), "the trial runs");
        let programs = Programs::find();
        let log = File::options().create(true).append(true).open(self.dir.with_extension("log")).unwrap();
        let mut command = Command::new(programs.lifeboat);
        command.arg("trial").arg("--dir").arg(&self.dir).args(["--no-ui", "--interval", &self.interval]);
        match &self.remote_agent {
            Some(host) => command.args(["--remote-agent", host]),
            None => command.arg("--agent").arg(programs.agent),
        };
        command.args(["--name", "source"]).env("HOME", self.dir.parent().unwrap());
        if !self.dir.exists() {
            command.args(["--vault-listen", &free_address(), "--process-server-listen", &free_address()]);
        }
        if let Some(uri) = &self.libvirt {
            command.args(["--libvirt", uri]);
        }
        for disk in &self.disks {
            command.arg("--disk").arg(disk);
        }
        let errors = log.try_clone().unwrap();
        self.trial = Some(command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().unwrap());
        let local = ["server", "show", "source"];
        let words = if self.remote_agent.is_some() { &["status"][..] } else { &local };
        wait_for("the vault to know the server", || {
            let trial = self.trial.as_mut().unwrap();
            assert!(trial.try_wait().unwrap().is_none(), "the trial ended: {}", self.logs());
            let answer = self.lifeboat(words);
            answer.status.success().then_some(())
        });
    }

    /// The disks that the trial protects from its next start on.
    pub fn protect(&mut self, disks: &[&LoopDisk]) {
        self.disks = disks.iter().map(|disk| disk.device.clone()).collect();
    }

    /// The events of the site, newest first.
    pub fn events(&self) -> Vec<Value> {
        self.json(["event", "list"]).as_array().unwrap().clone()
    }

    /// The newest recovery point; null when there is none.
    pub fn newest_point(&self) -> Value {
        self.json(["point", "list", "source"])[0].clone()
    }

    /// Stops the trial as Ctrl-C does.
    pub fn stop(&mut self) {
        let mut trial = self.trial.take().unwrap();
        run("kill", ["-INT", &trial.id().to_string()]);
        let status = trial.wait().unwrap();
        assert!(status.success(), "the trial ended with {status}: {}", self.logs());
    }

    /// Ends the trial without warning, so that it cannot stop its roles.
    pub fn kill_trial(&mut self) {
        let mut trial = self.trial.take().unwrap();
        trial.kill().unwrap();
        trial.wait().unwrap();
    }

    /// Ends the tracking of the disks, so that nothing of Lifeboat is in their way. The trial must
    /// be stopped; when it is resumed, the disks are compared with their copies.
    pub fn untrack(&self) {
        assert!(self.trial.is_none(), "the trial runs");
        let agent = Programs::find().agent;
        run(
            agent.to_str().unwrap(),
            ["untrack".as_ref(), "--config".as_ref(), self.dir.join("agent/agent.toml").as_os_str()],
        );
    }

    /// Runs a command of `lifeboat` against this site.
    pub fn lifeboat<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Output {
        self.command("json").args(words).output().unwrap()
    }

    /// `lifeboat` with this site and form of output, up to the words of the command.
    pub fn command(&self, output: &str) -> Command {
        let mut command = Command::new(Programs::find().lifeboat);
        command.args(["--output", output, "--site"]).arg(&self.dir);
        command.env("HOME", self.dir.parent().unwrap()).env_remove("LIFEBOAT_SITE");
        command
    }

    /// What a command prints for people, whether or not it succeeds.
    pub fn text(&self, words: &[&str]) -> String {
        let output = self.command("text").args(words).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// What the trial itself has printed.
    pub fn printed(&self) -> String {
        fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default()
    }

    /// Runs a command that must succeed, and answers its JSON.
    pub fn json<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Value {
        let words: Vec<_> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let output = self.lifeboat(&words);
        assert!(
            output.status.success(),
            "lifeboat {words:?} ended with {}: {}{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.logs()
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Takes a point that is committed when this returns; answers its id.
    pub fn take_point(&self, kind: &str) -> String {
        let request = self.json(["point", "take", "source", "--wait", "--kind", kind]);
        request["point"].as_str().unwrap_or_else(|| panic!("no point: {request}")).to_owned()
    }

    /// Asks for a point again and again until one is committed; answers its id.
    pub fn await_point_taken(&self, what: &str) -> String {
        wait_for(what, || {
            let output = self.lifeboat(["point", "take", "source", "--wait"]);
            let request: Value = serde_json::from_slice(&output.stdout).ok()?;
            Some(request["point"].as_str()?.to_owned())
        })
    }

    /// Waits for the first recovery point.
    pub fn await_first_point(&self) {
        wait_for(&format!("a recovery point\n{}", self.dir.display()), || {
            (!self.json(["point", "list", "source"]).as_array().unwrap().is_empty()).then_some(())
        });
    }

    /// Opens a point read-only, copies every disk to a file with `nbdcopy`, closes it.
    pub fn copy_out(&self, point: &str, into: &Path) -> Vec<PathBuf> {
        let opened = self.json(["volume", "open", "source", "--point", point, "--read-only"]);
        let images = opened["disks"].as_array().unwrap().iter().map(|disk| {
            let image = into.join(format!("{}.img", disk["disk"]));
            let uri = disk["nbd_uri"].as_str().unwrap();
            run("nbdcopy", [OsStr::new(uri), image.as_os_str()]);
            image
        });
        let images = images.collect();
        self.json(["volume", "close", opened["volume"].as_str().unwrap()]);
        images
    }

    /// The process id of a role of the trial: `agent`, `process-server` or `vault`.
    pub fn role(&self, role: &str) -> Option<u32> {
        let word = if role == "agent" { "run" } else { role };
        let trial = self.trial.as_ref().unwrap().id();
        let children = fs::read_to_string(format!("/proc/{trial}/task/{trial}/children")).ok()?;
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
            let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split('\0').nth(1) == Some(word)
        })
    }

    /// Ends a role without warning; says whether it ran. The trial starts it anew.
    pub fn kill(&self, role: &str) -> bool {
        let killed = |pid: u32| Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        self.role(role).is_some_and(|pid| killed(pid).is_ok_and(|status| status.success()))
    }

    /// The last lines of every log, for a failure's message.
    pub fn logs(&self) -> String {
        let logs = ["agent", "process-server", "vault"].map(|role| self.dir.join(format!("logs/{role}.log")));
        tails(&logs) + &tails(&[self.dir.with_extension("log")])
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut trial) = self.trial.take() {
            let _ = Command::new("kill").args(["-INT", &trial.id().to_string()]).status();
            let _ = trial.wait();
        }
        if self.remote_agent.is_none() {
            let settings = self.dir.join("agent/agent.toml");
            let agent = Programs::find().agent;
            let _ = Command::new(agent).arg("untrack").arg("--config").arg(settings).output();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// The last lines of each of `logs`.
pub(crate) fn tails(logs: &[PathBuf]) -> String {
    let tail = |log: &PathBuf| {
        let content = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = content.lines().collect();
        format!("--- {}\n{}\n", log.display(), lines[lines.len().saturating_sub(25)..].join("\n"))
    };
    logs.iter().map(tail).collect()
}

fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}
