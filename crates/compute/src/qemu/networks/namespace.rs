//! The network namespace of a network, and the process that holds it.
//!
//! The namespace has no name anywhere: it is that of its holder, a process that does nothing and works in
//! the network's directory. Nothing is therefore left of it once its processes have ended, and it is found
//! again whatever became of the vault's own mounts.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::process::Command;
use tokio::time::Instant;

use super::super::process::Process;
use crate::error::ComputeError;

/// How long the holder may take to be in a namespace of its own.
const MAKE_LIMIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// What the holder waits for.
const HOLDER_ARGUMENT: &str = "infinity";
const UTIL_LINUX: &str = "util-linux";

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    holder: Process,
}

impl Namespace {
    /// The namespace of the network in this directory, if it has one.
    pub(crate) fn find(directory: &Path) -> Result<Option<Self>, ComputeError> {
        let Some(holder) = Self::holder(directory)? else { return Ok(None) };
        // A holder that has just been started is still where it was started from.
        let own =
            fs::read_link("/proc/self/ns/net").map_err(ComputeError::io("read", "/proc/self/ns/net"))?;
        match fs::read_link(file_of(&holder)) {
            Ok(its) if its != own => Ok(Some(Self { holder })),
            _ => Ok(None),
        }
    }

    /// The process that holds it, or is about to.
    pub(crate) fn holder(directory: &Path) -> Result<Option<Process>, ComputeError> {
        Process::with_argument(Some(directory), HOLDER_ARGUMENT)
    }

    /// The namespace that there is, or a new one. The inner error is why there can be none.
    pub(crate) async fn find_or_make(directory: &Path) -> Result<Result<Self, String>, ComputeError> {
        let mut child = None;
        let deadline = Instant::now() + MAKE_LIMIT;
        loop {
            if let Some(namespace) = Self::find(directory)? {
                return Ok(Ok(namespace));
            }
            match &mut child {
                None if Self::holder(directory)?.is_none() => child = Some(start_holder(directory)?),
                None => {}
                Some(child) => {
                    if let Ok(Some(status)) = child.try_wait() {
                        let said = fs::read_to_string(directory.join("holder.log")).unwrap_or_default();
                        let said = said.trim().replace('\n', "; ");
                        return Ok(Err(format!("making a network namespace ended with {status}: {said}")));
                    }
                }
            }
            if Instant::now() > deadline {
                let seconds = MAKE_LIMIT.as_secs();
                return Ok(Err(format!("a network namespace was not made within {seconds} s")));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The number of the holder, by which other programs find the namespace.
    pub(crate) fn number(&self) -> i32 {
        self.holder.number()
    }

    /// A command that runs in it, but sees the host's files.
    pub(crate) fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.number().to_string(), "--net", "--"]);
        command.arg(program).args(arguments).kill_on_drop(true).stdin(Stdio::null());
        command
    }

    /// Runs a program in it to its end. The inner error is what it said.
    pub(crate) async fn run(
        &self,
        program: &Path,
        arguments: &[&str],
    ) -> Result<Result<(), String>, ComputeError> {
        match self.command(program, arguments).output().await {
            Ok(output) if output.status.success() => Ok(Ok(())),
            Ok(output) => Ok(Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))),
            Err(error) => Err(not_started("nsenter", error)),
        }
    }

    /// Connects to an address in it.
    pub(crate) async fn connect(
        &self,
        address: SocketAddrV4,
        limit: Duration,
    ) -> io::Result<tokio::net::TcpStream> {
        let namespace = File::open(file_of(&self.holder))?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // A thread that is in another namespace must not do anything else afterwards.
        std::thread::Builder::new().name("connect".into()).spawn(move || {
            let _ = sender.send(connect_there(&namespace, address, limit));
        })?;
        let stream = receiver.await.map_err(io::Error::other)??;
        tokio::net::TcpStream::from_std(stream)
    }
}

fn connect_there(namespace: &File, address: SocketAddrV4, limit: Duration) -> io::Result<TcpStream> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    // The socket stays in the namespace in which it was made.
    let stream = TcpStream::connect_timeout(&address.into(), limit)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn start_holder(directory: &Path) -> Result<tokio::process::Child, ComputeError> {
    let log = directory.join("holder.log");
    let log = File::create(&log).map_err(ComputeError::io("create", log))?;
    // A process group of its own, as a machine's process has, and for the same reason.
    Command::new("unshare")
        .args(["--net", "--", "sleep", HOLDER_ARGUMENT])
        .current_dir(directory)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|error| not_started("unshare", error))
}

fn file_of(process: &Process) -> PathBuf {
    format!("/proc/{}/ns/net", process.number()).into()
}

fn not_started(program: &str, error: io::Error) -> ComputeError {
    if error.kind() == io::ErrorKind::NotFound {
        return ComputeError::ProgramMissing { program: program.to_owned(), package: UTIL_LINUX };
    }
    ComputeError::io("run", program)(error)
}
