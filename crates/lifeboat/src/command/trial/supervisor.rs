//! Starts the roles of a trial, starts one anew that dies, and stops them from left to right.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lifeboat_api::Server;
use lifeboat_client::Vault;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::Layout;
use crate::failure::Failure;

/// How long a role may take until it answers, and how long to stop.
const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A role that dies again sooner than this waits before it is started anew.
const RESTART_AFTER: Duration = Duration::from_secs(3);

struct Role {
    name: &'static str,
    program: PathBuf,
    words: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    started: Instant,
}

/// The roles, in the order in which they are stopped.
pub struct Supervisor {
    /// Absent when it runs on another machine.
    agent: Option<Role>,
    process_server: Role,
    vault: Role,
    server: String,
    process_server_listen: std::net::SocketAddr,
}

impl Supervisor {
    pub fn new(layout: &Layout) -> Result<Self, Failure> {
        let own = std::env::current_exe()?;
        let role = |name, program: &Path, words: &[&str], settings: &Path| Role {
            name,
            program: program.to_owned(),
            words: words
                .iter()
                .map(|word| (*word).to_owned())
                .chain([settings.display().to_string()])
                .collect(),
            log: layout.log(name),
            child: None,
            started: Instant::now(),
        };
        Ok(Self {
            agent: layout
                .agent_program
                .as_ref()
                .map(|program| role("agent", program, &["run", "--config"], &layout.agent_settings())),
            process_server: role(
                "process-server",
                &own,
                &["process-server", "serve", "--config"],
                &layout.process_server_settings(),
            ),
            vault: role("vault", &own, &["vault", "serve", "--config"], &layout.vault_settings()),
            server: layout.server.to_string(),
            process_server_listen: layout.process_server_listen,
        })
    }

    pub fn start_vault(&mut self) -> Result<(), Failure> {
        self.vault.start()
    }

    pub fn start_process_server(&mut self) -> Result<(), Failure> {
        self.process_server.start()
    }

    pub fn start_agent(&mut self) -> Result<(), Failure> {
        self.agent.as_mut().map_or(Ok(()), Role::start)
    }

    /// Waits until the vault answers.
    pub async fn await_vault(&mut self, vault: &Vault) -> Result<(), Failure> {
        self.vault.until(async || vault.status().await.ok()).await.map(drop)
    }

    /// Waits until the process server listens.
    pub async fn await_process_server(&mut self) -> Result<(), Failure> {
        let address = self.process_server_listen;
        self.process_server.until(async || TcpStream::connect(address).await.ok()).await.map(drop)
    }

    /// Waits until the vault knows the server of the agent that was started.
    pub async fn await_server(&mut self, vault: &Vault) -> Result<Server, Failure> {
        let name = self.server.clone();
        // Without an agent of its own, the process server is what must stay.
        let role = self.agent.as_mut().unwrap_or(&mut self.process_server);
        role.until(async || vault.server(&name).await.ok()).await
    }

    /// Starts each role anew that is no longer there, and says so.
    pub fn restart_dead(&mut self) -> Result<Vec<String>, Failure> {
        let mut said = Vec::new();
        for role in [&mut self.vault, &mut self.process_server].into_iter().chain(&mut self.agent) {
            if let Some(end) = role.ended()? {
                said.push(format!("The {} ended ({end}): {}", role.name, role.last_words()));
            }
            if role.child.is_none() && role.started.elapsed() > RESTART_AFTER {
                role.start()?;
            }
        }
        Ok(said)
    }

    /// What there is to stop, in a sentence.
    pub fn names(&self) -> &'static str {
        if self.agent.is_some() { "agent, process server and vault" } else { "process server and vault" }
    }

    /// Stops the agent, then the process server, then the vault.
    pub async fn stop(&mut self) {
        for role in self.agent.iter_mut().chain([&mut self.process_server, &mut self.vault]) {
            role.stop().await;
        }
    }
}

impl Role {
    fn start(&mut self) -> Result<(), Failure> {
        let cannot = |what: &str, path: &Path, error| {
            Failure::new(format!("cannot {what} {}: {error}", path.display()))
        };
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(|error| cannot("write the log", &self.log, error))?;
        let errors = log.try_clone().map_err(|error| cannot("write the log", &self.log, error))?;
        let child = Command::new(&self.program)
            .args(&self.words)
            // A role goes when the trial that started it is killed.
            .env("LIFEBOAT_STOP_WITH_PARENT", "1")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C is for the trial, which then stops its roles in order.
            .process_group(0)
            .spawn()
            .map_err(|error| cannot("start", &self.program, error))?;
        self.child = Some(child);
        self.started = Instant::now();
        Ok(())
    }

    /// Asks again and again until there is an answer, the role ends or takes too long.
    async fn until<T>(&mut self, ask: impl AsyncFn() -> Option<T>) -> Result<T, Failure> {
        loop {
            if let Some(answer) = ask().await {
                return Ok(answer);
            }
            if let Some(end) = self.ended()? {
                return Err(Failure::new(format!(
                    "the {} did not start ({end}): {}",
                    self.name,
                    self.last_words()
                )));
            }
            if self.started.elapsed() > START_MAX {
                return Err(Failure::new(format!(
                    "the {} does not answer after {} s: {}; see {}",
                    self.name,
                    START_MAX.as_secs(),
                    self.last_words(),
                    self.log.display()
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How it ended, if it did since the last look.
    fn ended(&mut self) -> Result<Option<String>, Failure> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child
            .try_wait()
            .map_err(|error| Failure::new(format!("cannot watch the {}: {error}", self.name)))?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status.map(|status| status.to_string()))
    }

    async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(STOP_MAX, child.wait()).await.is_err() {
            eprintln!("lifeboat: the {} did not stop in {} s and is ended", self.name, STOP_MAX.as_secs());
            let _ = child.kill().await;
        }
    }

    /// The last line of its log.
    fn last_words(&self) -> String {
        const TAIL_BYTES: u64 = 4096;
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let end = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(end.saturating_sub(TAIL_BYTES)))?;
            let mut tail = Vec::new();
            file.read_to_end(&mut tail)?;
            Ok(String::from_utf8_lossy(&tail).into_owned())
        };
        let tail = read().unwrap_or_default();
        tail.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
    }
}
