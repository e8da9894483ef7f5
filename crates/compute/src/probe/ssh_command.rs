//! Running a command over SSH, with the program `ssh`.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::Waiting;
use crate::error::ComputeError;

/// A guest in emulation takes long for a handshake alone.
const LIMIT: Duration = Duration::from_secs(60);
/// OpenSSH's own failures, as opposed to those of the command.
const SSH_FAILED: i32 = 255;
/// So much of the end of what a command says is kept: it may say anything, without end.
const KEPT_BYTES: usize = 4 << 10;
/// So many of its last lines are told.
const LINES_TOLD: usize = 3;

/// With what a guest is logged in to, and how it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshAccess {
    /// The private key.
    pub key_file: PathBuf,
    /// Host keys that were seen. The one of a host that is not in it is taken and written there.
    pub known_hosts: PathBuf,
    /// The host's name in it: addresses of machines change, their keys do not.
    pub host: String,
}

/// Runs a command once, over a connection to the guest's SSH server.
pub(super) async fn run(
    guest: TcpStream,
    user: &str,
    command: &str,
    access: &SshAccess,
) -> Result<Result<(), Waiting>, ComputeError> {
    let relay = Relay::over(guest).await.map_err(ComputeError::io("listen for", "ssh"))?;
    let ssh = match ssh(relay.port, user, command, access).spawn() {
        Ok(ssh) => ssh,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ComputeError::ProgramMissing { program: "ssh".into(), package: "openssh-client" });
        }
        Err(error) => return Err(ComputeError::io("run", "ssh")(error)),
    };
    let Ok(ended) = tokio::time::timeout(LIMIT, to_the_end(ssh)).await else {
        return Ok(Err(Waiting(format!("the command did not end within {} s", LIMIT.as_secs()))));
    };
    let (status, said) = ended.map_err(ComputeError::io("run", "ssh"))?;
    Ok(judge(status, &said, user).map_err(Waiting))
}

fn ssh(port: u16, user: &str, command: &str, access: &SshAccess) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-T"]);
    for option in [
        "BatchMode=yes",
        "PreferredAuthentications=publickey",
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=accept-new",
        "GlobalKnownHostsFile=none",
        "UpdateHostKeys=no",
        "CheckHostIP=no",
        "LogLevel=ERROR",
        "ConnectTimeout=50",
        &format!("HostKeyAlias={}", access.host),
        &format!("UserKnownHostsFile={}", quoted(&access.known_hosts)),
        &format!("IdentityFile={}", quoted(&access.key_file)),
    ] {
        ssh.args(["-o", option]);
    }
    ssh.args(["-p", &port.to_string(), "-l", user, "127.0.0.1", "--", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    ssh
}

/// A path as `ssh` reads it in an option: with words split, and `%` followed by what is put in.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('%', "%%"))
}

/// How the program ended, and the end of what it said.
async fn to_the_end(mut ssh: Child) -> io::Result<(ExitStatus, String)> {
    let (out, err) = (ssh.stdout.take(), ssh.stderr.take());
    let (out, err, status) = tokio::join!(end_of(out), end_of(err), ssh.wait());
    // Trouble first: what the command has printed beside it says less.
    let said = if err.trim().is_empty() { out } else { err };
    Ok((status?, said))
}

async fn end_of(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut kept = Vec::new();
    let mut part = vec![0; KEPT_BYTES];
    while let Ok(read @ 1..) = stream.read(&mut part).await {
        kept.extend_from_slice(&part[..read]);
        kept.drain(..kept.len().saturating_sub(KEPT_BYTES));
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn judge(status: ExitStatus, said: &str, user: &str) -> Result<(), String> {
    let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = match &lines[lines.len().saturating_sub(LINES_TOLD)..] {
        [] => "it said nothing".to_owned(),
        last => last.join("; "),
    };
    match status.code() {
        Some(0) => Ok(()),
        Some(SSH_FAILED) if said.contains("Host key verification failed") => Err(
            "the machine has another SSH host key than the one that this server was known by; if that is right, \
             `lifeboat target set` for this server forgets the old one"
                .to_owned(),
        ),
        Some(SSH_FAILED) if said.contains("Permission denied") => Err(format!(
            "the machine does not let {user} in with the vault's key ({last}): put the line that `lifeboat target \
             ssh-key` prints into ~{user}/.ssh/authorized_keys of the server; points that are taken from then on have it"
        )),
        Some(SSH_FAILED) => Err(format!("the command could not be run, or ended with status 255: {last}")),
        Some(code) => Err(format!("the command ended with status {code}: {last}")),
        None => Err(format!("the command was ended by a signal: {last}")),
    }
}

/// A port of the loopback through which one client reaches the guest, wherever that is.
struct Relay {
    port: u16,
    task: JoinHandle<()>,
}

impl Relay {
    async fn over(mut guest: TcpStream) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let task = tokio::spawn(async move {
            if let Ok((mut client, _)) = listener.accept().await {
                // How the connection ends is for the client to say.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut guest).await;
            }
        });
        Ok(Self { port, task })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a program that ended like this.
    async fn told(script: &str) -> Result<(), String> {
        let mut sh = Command::new("sh");
        sh.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (status, said) = to_the_end(sh.spawn().unwrap()).await.unwrap();
        judge(status, &said, "backup")
    }

    #[tokio::test]
    async fn a_command_that_fails_tells_its_status_and_its_last_lines() {
        assert_eq!(told("echo fine").await, Ok(()));
        let cases = [
            ("for n in 1 2 3 4; do echo line $n; done; exit 3", "status 3: line 2; line 3; line 4"),
            ("echo one; echo trouble >&2; exit 1", "status 1: trouble"),
            ("exit 7", "status 7: it said nothing"),
            ("kill -TERM $$", "ended by a signal"),
            ("echo Host key verification failed. >&2; exit 255", "another SSH host key"),
            ("echo 'backup: Permission denied (publickey).' >&2; exit 255", "~backup/.ssh/authorized_keys"),
        ];
        for (script, expected) in cases {
            let told = told(script).await.unwrap_err();
            assert!(told.contains(expected), "{script}: {told}");
        }
    }

    #[tokio::test]
    async fn only_the_end_of_what_a_command_says_is_kept() {
        let told =
            told("head -c 10000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1").await.unwrap_err();
        assert!(told.len() < 2 * KEPT_BYTES && told.ends_with("; the end"), "{} bytes", told.len());
    }
}
