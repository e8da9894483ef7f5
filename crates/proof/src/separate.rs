//! The roles on machines of their own: network namespaces joined by cables that can be cut.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::{LoopDisk, Programs, run, scratch};

/// A cable between two machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// Between the server and the process server.
    Agent,
    /// Between the process server and the vault.
    Vault,
}

/// A protected site with a server and a process server, and a recovery site with a vault.
pub struct SeparateMachines {
    pub dir: PathBuf,
    names: [String; 3],
    roles: Vec<Child>,
    _home: TempDir,
}

const SERVER: usize = 0;
const PROCESS_SERVER: usize = 1;
const VAULT: usize = 2;

/// The devices of a cable: on the side from which the data comes, and on the other.
const TO_VAULT: &str = "to-vault";
const TO_SERVER: &str = "to-server";

static SITES: AtomicU32 = AtomicU32::new(0);

impl SeparateMachines {
    /// Sets the machines up as an operator would, with certificates and settings of their own, and starts the roles.
    pub fn start(disks: &[&LoopDisk], policy: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("lifeboat-site-").tempdir_in(scratch()).unwrap();
        let site = format!("lb{}-{}", std::process::id(), SITES.fetch_add(1, Ordering::Relaxed));
        let names = ["s", "p", "v"].map(|role| format!("{site}{role}"));
        let mut machines = Self { dir: home.path().to_owned(), names, roles: Vec::new(), _home: home };
        machines.connect();
        machines.issue_certificates();
        machines.write_settings(disks);
        let Programs { lifeboat, agent } = Programs::find();
        machines.start_role(VAULT, &lifeboat, &["vault", "serve"]);
        machines.start_role(PROCESS_SERVER, &lifeboat, &["process-server", "serve"]);
        machines.start_role(SERVER, &agent, &["run"]);
        crate::wait_for("the vault to know the server", || {
            machines.lifeboat(["server", "show", "source"]).status.success().then_some(())
        });
        let words = ["server", "set-policy", "source"];
        let output = machines.lifeboat(words.iter().chain(policy));
        assert!(output.status.success(), "{output:?}");
        machines
    }

    /// Runs a command of `lifeboat` on the vault's machine.
    pub fn lifeboat<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> std::process::Output {
        self.lifeboat_on(VAULT, words)
    }

    /// Runs a command of `lifeboat` on a machine that is not the vault's.
    pub fn lifeboat_elsewhere<S: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
    ) -> std::process::Output {
        self.lifeboat_on(PROCESS_SERVER, words)
    }

    /// Runs a command on a machine that is not the vault's; it must succeed.
    pub fn run_elsewhere(&self, words: &[&str]) {
        self.on(PROCESS_SERVER, words);
    }

    /// Lets the vault offer volumes to other machines as well, and starts it anew.
    pub fn offer_volumes_elsewhere(&mut self) {
        let file = self.dir.join("vault.toml");
        let settings = fs::read_to_string(&file).unwrap() + "listen = \"10.97.2.2:10809\"\n";
        fs::write(&file, settings).unwrap();
        // The vault was started first.
        let mut vault = self.roles.remove(0);
        run("kill", ["-TERM", &vault.id().to_string()]);
        vault.wait().unwrap();
        self.start_role(VAULT, &Programs::find().lifeboat, &["vault", "serve"]);
        crate::wait_for("the vault to answer", || self.lifeboat(["status"]).status.success().then_some(()));
        let vault = self.roles.pop().unwrap();
        self.roles.insert(0, vault);
    }

    fn lifeboat_on<S: AsRef<OsStr>>(
        &self,
        machine: usize,
        words: impl IntoIterator<Item = S>,
    ) -> std::process::Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[machine]]).arg(Programs::find().lifeboat);
        command.args(["--output", "json", "--site", "https://10.97.2.2:443", "--credentials"]);
        command.arg(self.dir.join("operator")).args(words).env("HOME", &self.dir).output().unwrap()
    }

    /// Cuts a cable.
    pub fn cut(&self, cable: Cable) {
        self.link(cable, "down");
    }

    /// Mends a cable.
    pub fn mend(&self, cable: Cable) {
        self.link(cable, "up");
    }

    /// Lets a cable carry no more than `rate`, such as `2mbit`, towards the vault.
    pub fn slow(&self, cable: Cable, rate: &str) {
        let (machine, device) = cable.sender();
        let words = [
            "tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate, "burst", "64kb", "latency",
            "200ms",
        ];
        self.on(machine, &words);
    }

    /// Lets a slowed cable carry what it can.
    pub fn hasten(&self, cable: Cable) {
        let (machine, device) = cable.sender();
        self.on(machine, &["tc", "qdisc", "del", "dev", device, "root"]);
    }

    /// The last lines of every log, for a failure's message.
    pub fn logs(&self) -> String {
        let logs = ["agent.log", "process-server.log", "vault.log"].map(|log| self.dir.join(log));
        crate::site::tails(&logs)
    }

    fn link(&self, cable: Cable, state: &str) {
        let (machine, device) = cable.sender();
        self.on(machine, &["ip", "link", "set", device, state]);
    }

    fn on(&self, machine: usize, words: &[&str]) {
        run("ip", ["netns", "exec", &self.names[machine]].iter().copied().chain(words.iter().copied()));
    }

    /// server 10.97.1.1 — 10.97.1.2 process server 10.97.2.1 — 10.97.2.2 vault.
    fn connect(&self) {
        for name in &self.names {
            run("ip", ["netns", "add", name]);
        }
        for (left, left_device, right, right_device, net) in [
            (SERVER, TO_VAULT, PROCESS_SERVER, TO_SERVER, 1),
            (PROCESS_SERVER, TO_VAULT, VAULT, TO_SERVER, 2),
        ] {
            let (left_name, right_name) = (&self.names[left], &self.names[right]);
            run(
                "ip",
                [
                    "link",
                    "add",
                    left_device,
                    "netns",
                    left_name,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    right_device,
                    "netns",
                    right_name,
                ],
            );
            for (machine, device, host) in [(left, left_device, 1), (right, right_device, 2)] {
                self.on(machine, &["ip", "addr", "add", &format!("10.97.{net}.{host}/24"), "dev", device]);
                self.on(machine, &["ip", "link", "set", device, "up"]);
                self.on(machine, &["ip", "link", "set", "lo", "up"]);
            }
        }
    }

    fn issue_certificates(&self) {
        let lifeboat = Programs::find().lifeboat;
        let lifeboat = lifeboat.to_str().unwrap();
        let authority = self.path("authority");
        run(lifeboat, ["authority", "create", "--name", "proof", &authority]);
        for (role, dir, more) in [
            ("vault", "vault", &["--host", "10.97.2.2"][..]),
            ("process-server", "process-server", &["--name", "gateway", "--host", "10.97.1.2"]),
            ("agent", "agent", &[]),
            ("operator", "operator", &["--name", "admin"]),
        ] {
            let dir = self.path(dir);
            let words = ["certificate", "issue", "--authority", &authority, "--for", role, &dir];
            run(lifeboat, words.iter().chain(more));
        }
    }

    fn write_settings(&self, disks: &[&LoopDisk]) {
        let path = |name: &str| self.path(name);
        let disks: Vec<_> = disks.iter().map(|disk| format!("\"{}\"", disk.device.display())).collect();
        let vault = format!(
            "listen = \"10.97.2.2:443\"\ncredentials = \"{}\"\nstate = \"{}\"\n[nbd]\nsocket_directory = \"/run/{}\"\n",
            path("vault"),
            path("vault-state"),
            self.names[VAULT]
        );
        let process_server = format!(
            "name = \"gateway\"\nlisten = \"10.97.1.2:9443\"\nvault = \"https://10.97.2.2:443\"\ncredentials = \"{}\"\nstate = \"{}\"\n\
             [spool]\nwarn_below_percent = 3\ncritical_below_percent = 2\nthrottle_below_percent = 1\n",
            path("process-server"),
            path("process-server-state")
        );
        let agent = format!(
            "process_servers = [\"https://10.97.1.2:9443\"]\nname = \"source\"\ncredentials = \"{}\"\nstate = \"{}\"\n\
             pin_dir = \"/sys/fs/bpf/{}\"\ndisks = [{}]\n",
            path("agent"),
            path("agent-state"),
            self.names[SERVER],
            disks.join(", ")
        );
        for (file, text) in
            [("vault.toml", vault), ("process-server.toml", process_server), ("agent.toml", agent)]
        {
            fs::write(self.dir.join(file), text).unwrap();
        }
    }

    fn start_role(&mut self, machine: usize, program: &Path, words: &[&str]) {
        let role = ["agent", "process-server", "vault"][machine];
        let log = File::create(self.dir.join(format!("{role}.log"))).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.names[machine]])
            .arg(program)
            .args(words)
            .arg("--config")
            .arg(self.dir.join(format!("{role}.toml")))
            .env("LIFEBOAT_STOP_WITH_PARENT", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.roles.push(child);
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }
}

impl Cable {
    /// The machine on the server's side of the cable, and its device.
    fn sender(self) -> (usize, &'static str) {
        match self {
            Self::Agent => (SERVER, TO_VAULT),
            Self::Vault => (PROCESS_SERVER, TO_VAULT),
        }
    }
}

impl Drop for SeparateMachines {
    fn drop(&mut self) {
        // The agent first, so that it does not complain about the others.
        for mut role in self.roles.drain(..).rev() {
            let _ = Command::new("kill").args(["-TERM", &role.id().to_string()]).status();
            let _ = role.wait();
        }
        let _ = Command::new(Programs::find().agent)
            .args(["untrack", "--config"])
            .arg(self.dir.join("agent.toml"))
            .output();
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}
