//! Commands on another machine, over the system's `ssh`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::ServerDisk;
use crate::server_disk::HOST_ALIAS;

/// How to reach root's account on a machine.
#[derive(Clone, Debug)]
pub struct Ssh {
    /// The words that stand before `ssh`, where the machine is reached from within a network of its own.
    pub entrance: Vec<String>,
    pub address: String,
    pub port: u16,
    pub key: PathBuf,
    pub known_hosts: PathBuf,
}

impl Ssh {
    /// A machine whose SSH a port of this one's loopback leads to.
    pub fn at_port(port: u16, server: &ServerDisk) -> Self {
        Self::at(Vec::new(), "127.0.0.1", port, server)
    }

    /// A machine at an address in a network of its own, which the words of `entrance` lead into.
    pub fn within(entrance: &str, address: &str, server: &ServerDisk) -> Self {
        Self::at(entrance.split_whitespace().map(str::to_owned).collect(), address, 22, server)
    }

    fn at(entrance: Vec<String>, address: &str, port: u16, server: &ServerDisk) -> Self {
        let (key, known_hosts) = (server.key.clone(), server.known_hosts.clone());
        Self { entrance, address: address.to_owned(), port, key, known_hosts }
    }

    /// `ssh` up to the words of the command, which the other machine's shell reads.
    pub fn command(&self) -> Command {
        let mut command = Command::new("env");
        command.args(&self.entrance).args(["ssh", "-F", "none", "-p", &self.port.to_string(), "-i"]);
        command.arg(&self.key);
        for option in [
            &format!("UserKnownHostsFile={}", self.known_hosts.display()),
            &format!("HostKeyAlias={HOST_ALIAS}"),
            "StrictHostKeyChecking=yes",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "LogLevel=ERROR",
            "ConnectTimeout=20",
            // A machine that lost its power says nothing any more.
            "ServerAliveInterval=10",
            "ServerAliveCountMax=6",
        ] {
            command.args(["-o", option]);
        }
        command.arg(format!("root@{}", self.address)).stdin(Stdio::null());
        command
    }

    /// Runs a command of the shell there, whatever comes of it.
    pub fn attempt(&self, words: &str) -> Output {
        self.command().arg(words).output().unwrap()
    }

    /// Runs a command that must succeed, and answers what it printed.
    pub fn run(&self, words: &str) -> String {
        let output = self.attempt(words);
        assert!(
            output.status.success(),
            "`{words}` over SSH ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Copies `paths`, which lie below `dir`, to the same paths below the other machine's root.
    pub fn copy(&self, dir: &Path, paths: &[&str]) {
        let mut tar = Command::new("tar")
            .args(["--create", "--gzip", "--owner=0", "--group=0", "--directory"])
            .arg(dir)
            .args(paths)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let packed = tar.stdout.take().unwrap();
        let output = self.command().arg("tar --extract --gzip --directory=/").stdin(packed).output().unwrap();
        assert!(
            tar.wait().unwrap().success() && output.status.success(),
            "copying {paths:?} over SSH failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Starts a command whose input and output are pipes.
    pub fn start(&self, words: &str) -> Child {
        let mut command = self.command();
        command.arg(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }
}
