//! Commands over SSH decide whether a machine is up.
//!
//! The machine is in a network of this host's, at an address at which a real SSH server listens: it stands in for
//! the guest's, since a guest of one boot sector has none.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use lifeboat_api::{CreateNetwork, Job, JobState, NetworkKind, Probe, ProbeResult};
use lifeboat_model::Span;
use lifeboat_vault::jobs::JobRequest;
use tempfile::TempDir;

use crate::site::{Site, target};
use crate::support::SERVER;

const PORT: u16 = 2222;
/// For documentation, and so nobody's.
const ADDRESS: [u8; 4] = [192, 0, 2, 77];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_over_ssh_decides_whether_a_machine_is_up() {
    let lan = Lan::new();
    let site = Site::new().await;
    let network = CreateNetwork {
        name: "lan".into(),
        kind: NetworkKind::Bridge,
        bridge: Some(lan.0.clone()),
        subnet: None,
        gateway: None,
        dhcp: false,
    };
    site.jobs.create_network(&network).await.unwrap();
    let key = site.jobs.ssh_key().await.unwrap().public_key;
    assert!(key.starts_with("ssh-ed25519 ") && key.lines().count() == 1, "{key}");
    assert_eq!(site.jobs.ssh_key().await.unwrap().public_key, key, "there is one key");
    only_its_owner_reads_it(&site.dir.path().join("state/ssh/key"));
    let sshd = Sshd::start();

    // Nobody has told the server about the vault's key.
    site.set_command("true", 20).await;
    let result = probed(&site.drill_in_lan().await, false);
    assert!(result.message.as_ref().unwrap().contains("authorized_keys"), "{result:?}");

    sshd.authorize(&key);
    site.set_command("echo one; echo two; echo not yet >&2; exit 7", 20).await;
    let result = probed(&site.drill_in_lan().await, false);
    assert_eq!(result.message.as_deref(), Some("the command ended with status 7: not yet"));

    let witness = site.dir.path().join("witness");
    site.set_command(&format!("id -un > {}", witness.display()), 30).await;
    let result = probed(&site.drill_in_lan().await, true);
    assert!(
        result.after_ms.is_some() && result.probe.contains("as root over SSH on port 2222"),
        "{result:?}"
    );
    assert_eq!(std::fs::read_to_string(&witness).unwrap(), "root\n");

    // It is another machine that answers there now, until an operator says that it is the right one.
    std::fs::remove_file(&witness).unwrap();
    drop(sshd);
    let sshd = Sshd::start();
    sshd.authorize(&key);
    let result = probed(&site.drill_in_lan().await, false);
    assert!(result.message.as_ref().unwrap().contains("another SSH host key"), "{result:?}");
    assert!(!witness.exists());
    site.set_command("true", 100).await;
    probed(&site.drill_in_lan().await, true);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_users_that_cannot_be_meant_are_refused() {
    let site = Site::new().await;
    for (command, user, what) in [
        ("", "root", "a command that is run over SSH"),
        ("true", "-oProxyCommand=x", "no name of a user"),
        ("true", "a b", "no name of a user"),
    ] {
        let mut wrong = target("login: ");
        wrong.probes = vec![Probe::Run { command: command.into(), user: user.into(), port: PORT }];
        let refused = site.jobs.set_target(SERVER, &wrong).await.unwrap_err().to_string();
        assert!(refused.contains(what), "{refused}");
    }
    site.end().await;
}

fn drill_in_lan() -> JobRequest {
    JobRequest::Drill { point: "latest".into(), keep: false, network: Some("lan".into()) }
}

impl Site {
    /// The machine is up when this command succeeds within so many seconds.
    async fn set_command(&self, command: &str, seconds: u64) {
        let mut settings = target("");
        settings.address = Some(ADDRESS.into());
        settings.up_within = Some(Span::seconds(seconds));
        settings.probes = vec![Probe::Run { command: command.to_owned(), user: "root".into(), port: PORT }];
        self.jobs.set_target(SERVER, &settings).await.unwrap();
    }

    async fn drill_in_lan(&self) -> Job {
        self.run(drill_in_lan()).await
    }
}

/// What became of the one probe of a drill.
fn probed(drill: &Job, up: bool) -> ProbeResult {
    let state = if up { JobState::Done } else { JobState::Failed };
    assert_eq!(drill.state, state, "{drill:#?}");
    let [result] = drill.report.as_ref().unwrap().probes.as_slice() else { panic!("{drill:#?}") };
    assert_eq!(result.passed, up, "{result:?}");
    result.clone()
}

fn only_its_owner_reads_it(path: &Path) {
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
}

/// A bridge of this host with the address, that goes with the test.
struct Lan(String);

impl Lan {
    fn new() -> Self {
        let name = format!("lbssh{}", std::process::id() % 100_000);
        ip(&["link", "add", "name", &name, "type", "bridge"]);
        let lan = Self(name);
        let address = format!("{}/32", std::net::Ipv4Addr::from(ADDRESS));
        ip(&["address", "add", &address, "dev", &lan.0]);
        ip(&["link", "set", "dev", &lan.0, "up"]);
        lan
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", "dev", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

/// An SSH server at the address, with a host key of its own. It ends with the test.
struct Sshd {
    place: TempDir,
    process: Child,
}

impl Sshd {
    fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let host_key = place.path().join("host-key");
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&host_key);
        assert!(keygen.status().unwrap().success());
        // Debian's takes no connection without it.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let settings = place.path().join("settings");
        let text = format!(
            "Port {PORT}\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nPidFile none\n",
            std::net::Ipv4Addr::from(ADDRESS),
            host_key.display(),
            place.path().join("authorized").display()
        );
        std::fs::write(&settings, text).unwrap();
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.arg("-D").arg("-f").arg(&settings).stdin(Stdio::null()).stderr(Stdio::null());
        let sshd =
            Self { process: sshd.spawn().expect("the Debian package openssh-server is needed"), place };
        sshd.await_greeting();
        sshd
    }

    fn await_greeting(&self) {
        let begun = std::time::Instant::now();
        while std::net::TcpStream::connect((std::net::Ipv4Addr::from(ADDRESS), PORT)).is_err() {
            assert!(begun.elapsed().as_secs() < 60, "the SSH server does not listen");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    fn authorize(&self, key: &str) {
        std::fs::write(self.place.path().join("authorized"), format!("{key}\n")).unwrap();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
