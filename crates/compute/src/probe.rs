//! What proves from outside that a guest is up.
//!
//! A probe is attempted again and again by its caller until it passes or the caller's patience ends; each
//! attempt is short and says why it did not pass yet.

use std::fmt;
use std::time::Duration;

use lifeboat_model::MachineId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::error::ComputeError;
use crate::provider::{MachineStatus, Provider, Reached};

mod ssh_command;

pub use ssh_command::SshAccess;

/// One attempt takes at most about this long; a command over SSH has a time of its own.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
const LINE_BYTES_MAX: u64 = 1024;

/// What proves that a guest is up. Ports are the guest's, and reached through the
/// machine's forwards or at its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Probe {
    /// The text stands on its serial console.
    Console {
        /// The text.
        pattern: String,
    },
    /// It takes TCP connections.
    Tcp {
        /// On this port.
        port: u16,
    },
    /// An SSH server greets.
    SshBanner {
        /// On this port.
        port: u16,
    },
    /// A web server answers.
    Http {
        /// On this port.
        port: u16,
        /// Asked for this path.
        path: String,
        /// With this status.
        status: u16,
    },
    /// A command run over SSH succeeds.
    SshCommand {
        /// On this port.
        port: u16,
        /// As this user.
        user: String,
        /// The command, for the user's shell.
        command: String,
        /// With this key, on the host that is meant.
        access: SshAccess,
    },
}

/// Why a probe has not passed yet: one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Waiting(String);

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Console { pattern } => write!(f, "{pattern:?} on the console"),
            Self::Tcp { port } => write!(f, "TCP port {port}"),
            Self::SshBanner { port } => write!(f, "SSH greeting on port {port}"),
            Self::Http { port, path, status } => write!(f, "HTTP status {status} of {path} on port {port}"),
            Self::SshCommand { port, user, command, .. } => {
                write!(f, "{command:?} as {user} over SSH on port {port}")
            }
        }
    }
}

impl Probe {
    /// Tries once. `Ok(Err(_))` is a guest that is not up yet.
    ///
    /// # Errors
    ///
    /// When the machine is not there, is off or does not answer: trying again will not help.
    pub async fn attempt(
        &self,
        provider: &dyn Provider,
        machine: MachineId,
    ) -> Result<Result<(), Waiting>, ComputeError> {
        match self {
            Self::Console { pattern } => console(provider, machine, pattern).await,
            Self::Tcp { port } => Ok(reach(provider, machine, *port).await?.map(drop)),
            Self::SshBanner { port } => match reach(provider, machine, *port).await? {
                Ok(stream) => Ok(ssh_banner(stream, *port).await),
                Err(waiting) => Ok(Err(waiting)),
            },
            Self::Http { port, path, status } => match reach(provider, machine, *port).await? {
                Ok(stream) => Ok(http(stream, *port, path, *status).await),
                Err(waiting) => Ok(Err(waiting)),
            },
            Self::SshCommand { port, user, command, access } => {
                match reach(provider, machine, *port).await? {
                    Ok(stream) => ssh_command::run(stream, user, command, access).await,
                    Err(waiting) => Ok(Err(waiting)),
                }
            }
        }
    }
}

fn not_yet(why: String) -> Result<Result<(), Waiting>, ComputeError> {
    Ok(Err(Waiting(why)))
}

async fn reach(
    provider: &dyn Provider,
    machine: MachineId,
    port: u16,
) -> Result<Result<TcpStream, Waiting>, ComputeError> {
    Ok(match provider.reach(machine, port, ATTEMPT_LIMIT).await? {
        Reached::Yes(stream) => Ok(stream),
        Reached::No(why) => Err(Waiting(why)),
    })
}

async fn console(
    provider: &dyn Provider,
    machine: MachineId,
    pattern: &str,
) -> Result<Result<(), Waiting>, ComputeError> {
    let mut from = 0;
    // What was read last, since the pattern may lie across two parts.
    let mut tail = String::new();
    loop {
        let part = provider.console(machine, from).await?;
        tail.push_str(&part.text);
        if tail.contains(pattern) {
            return Ok(Ok(()));
        }
        if part.next == from || part.text.is_empty() {
            break;
        }
        from = part.next;
        let keep = tail.char_indices().rev().nth(pattern.chars().count().max(200)).map_or(0, |(at, _)| at);
        tail.drain(..keep);
    }
    // Text that is there counts also when the machine is off by now; without it nothing more will come.
    match provider.status(machine).await? {
        MachineStatus::Running { .. } => {}
        MachineStatus::Absent => return Err(ComputeError::NoMachine { machine }),
        MachineStatus::Off { why } => return Err(ComputeError::Off { machine, why: why.to_string() }),
    }
    let last = tail.lines().rfind(|line| !line.trim().is_empty()).map(str::trim);
    not_yet(match last {
        None => "the console shows nothing yet".to_owned(),
        Some(last) => format!("the console does not show {pattern:?} yet; its last line is {last:?}"),
    })
}

/// The first line that the guest sends, without its end.
async fn first_line(stream: &mut BufReader<TcpStream>, port: u16) -> Result<String, Waiting> {
    let mut line = Vec::new();
    let mut bounded = stream.take(LINE_BYTES_MAX);
    let read = tokio::time::timeout(ATTEMPT_LIMIT, bounded.read_until(b'\n', &mut line));
    match read.await {
        Err(_) => Err(Waiting(format!("the guest takes connections on port {port} and says nothing"))),
        Ok(Err(error)) => Err(Waiting(format!("the connection to port {port} of the guest broke: {error}"))),
        Ok(Ok(0)) => Err(Waiting(format!("the guest closed the connection to port {port} at once"))),
        Ok(Ok(_)) => Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
    }
}

async fn ssh_banner(stream: TcpStream, port: u16) -> Result<(), Waiting> {
    let line = first_line(&mut BufReader::new(stream), port).await?;
    if line.starts_with("SSH-2.0-") || line.starts_with("SSH-1.99-") {
        return Ok(());
    }
    Err(Waiting(format!("port {port} of the guest greets with {line:?}, which is not SSH")))
}

async fn http(mut stream: TcpStream, port: u16, path: &str, status: u16) -> Result<(), Waiting> {
    let path = path.replace(|c: char| c.is_ascii_control() || c == ' ', "");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    if let Err(error) = stream.write_all(request.as_bytes()).await {
        return Err(Waiting(format!("the connection to port {port} of the guest broke: {error}")));
    }
    let line = first_line(&mut BufReader::new(stream), port).await?;
    let mut fields = line.split(' ');
    let is_http = fields.next().is_some_and(|version| version.starts_with("HTTP/1."));
    match fields.next().and_then(|code| code.parse::<u16>().ok()).filter(|_| is_http) {
        Some(code) if code == status => Ok(()),
        Some(code) => {
            Err(Waiting(format!("{path} on port {port} of the guest has status {code}, not {status}")))
        }
        None => Err(Waiting(format!("port {port} of the guest answers {line:?}, which is not HTTP"))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A connection to a server that sends this at once and then closes.
    async fn server(answer: &'static str) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            // Reads the request, so that the end is no reset.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        TcpStream::connect(address).await.unwrap()
    }

    #[tokio::test]
    async fn an_ssh_server_is_known_by_its_greeting() {
        assert_eq!(ssh_banner(server("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n").await, 22).await, Ok(()));
        for (answer, why) in [
            ("", "port 22 at once"),
            ("220 mail ESMTP\r\n", "greets with \"220 mail ESMTP\", which is not SSH"),
        ] {
            let waiting = ssh_banner(server(answer).await, 22).await.unwrap_err();
            assert!(waiting.to_string().contains(why), "{waiting}");
        }
    }

    #[tokio::test]
    async fn a_web_server_must_answer_with_the_status() {
        let answer = "HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(http(server(answer).await, 80, "/health", 204).await, Ok(()));
        let waiting = http(server(answer).await, 80, "/health", 200).await.unwrap_err();
        assert_eq!(waiting.to_string(), "/health on port 80 of the guest has status 204, not 200");
        let waiting = http(server("SSH-2.0-x\r\n").await, 80, "/", 200).await.unwrap_err();
        assert!(waiting.to_string().contains("which is not HTTP"), "{waiting}");
    }
}
