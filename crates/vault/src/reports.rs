//! What process servers report every few seconds. Only the newest report counts, so it is kept in
//! memory; the catalog notes that there is such a process server.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use lifeboat_api as api;
use lifeboat_model::ServerId;
use lifeboat_wire::event::{Event, Severity};
use lifeboat_wire::process_server::{ProcessServerReport, ServerReport, SpoolState, VaultHello};

use crate::error::VaultError;
use crate::point_time::Why;
use crate::rpo;
use crate::vault::Vault;

/// How often the catalog notes that a process server and its agents are still there.
const NOTED_EVERY: SignedDuration = SignedDuration::from_secs(10);

/// What was reported since the vault was opened.
#[derive(Debug, Default)]
pub(crate) struct Live {
    process_servers: BTreeMap<String, Reported>,
    committing: HashMap<ServerId, Timestamp>,
    clock_differs: BTreeSet<String>,
    /// Servers whose newest point did not get the time that its agent gave it.
    time_differs: HashMap<ServerId, Why>,
}

/// The newest report of a process server.
#[derive(Debug)]
struct Reported {
    report: ProcessServerReport,
    /// By the vault's clock.
    received: Timestamp,
    noted: Timestamp,
}

/// The newest that was reported of a server.
#[derive(Clone, Debug)]
pub(crate) struct ServerLive {
    pub(crate) process_server: String,
    /// When the process server reported, by the vault's clock.
    pub(crate) reported: Timestamp,
    pub(crate) report: ServerReport,
    /// What to add to the agent's times to have them by the vault's clock.
    pub(crate) agent_correction: SignedDuration,
    /// What to add to the process server's times likewise.
    pub(crate) process_server_correction: SignedDuration,
}

impl ServerLive {
    /// When the agent was last heard of, by the vault's clock.
    pub(crate) fn heard(&self) -> Option<Timestamp> {
        let heard = self.report.heard?;
        Some(heard.saturating_add(self.process_server_correction).unwrap_or(heard))
    }
}

impl Live {
    /// The report of the process server that heard of the server last.
    pub(crate) fn server(&self, server: ServerId) -> Option<ServerLive> {
        let of = |(name, reported): (&String, &Reported)| {
            let report = reported.report.servers.iter().find(|report| report.server == server)?;
            let process_server_correction = rpo::correction(reported.report.time, reported.received);
            let agent_correction = match (&report.agent, report.heard) {
                // The two differences together: agent to process server, process server to vault.
                (Some(agent), Some(heard)) => {
                    let total = heard.duration_since(agent.time)
                        + reported.received.duration_since(reported.report.time);
                    if total.abs() > rpo::CLOCKS_DIFFER { total } else { SignedDuration::ZERO }
                }
                _ => process_server_correction,
            };
            Some(ServerLive {
                process_server: name.clone(),
                reported: reported.received,
                report: report.clone(),
                agent_correction,
                process_server_correction,
            })
        };
        self.process_servers.iter().filter_map(of).max_by_key(|live| (live.report.heard, live.reported))
    }

    /// The time T of a point that is being committed now.
    pub(crate) fn being_committed(&self, server: ServerId) -> Option<Timestamp> {
        self.committing.get(&server).copied()
    }

    /// Notes how the newest point came to its time; whether that is worth telling.
    pub(crate) fn time_differs_anew(&mut self, server: ServerId, why: Why) -> bool {
        match why {
            Why::AsClaimed => {
                self.time_differs.remove(&server);
                false
            }
            why => self.time_differs.insert(server, why) != Some(why),
        }
    }

    pub(crate) fn committing(&mut self, server: ServerId, time: Timestamp) {
        self.committing.insert(server, time);
    }

    pub(crate) fn committed(&mut self, server: ServerId) {
        self.committing.remove(&server);
    }

    fn all_heard(&self) -> Vec<api::ProcessServer> {
        self.process_servers.keys().filter_map(|name| self.heard(name)).collect()
    }

    /// When the agents that a process server speaks for were last heard of, by the vault's clock.
    fn servers_heard(&self, process_server: &str) -> Vec<(ServerId, Timestamp)> {
        let Some(reported) = self.process_servers.get(process_server) else { return Vec::new() };
        let servers = reported.report.servers.iter();
        let live = servers.filter_map(|report| Some((report.server, self.server(report.server)?)));
        live.filter(|(_, live)| live.process_server == process_server)
            .filter_map(|(server, live)| Some((server, live.heard()?)))
            .collect()
    }

    pub(crate) fn heard(&self, process_server: &str) -> Option<api::ProcessServer> {
        let reported = self.process_servers.get(process_server)?;
        Some(api_process_server(process_server, &reported.report, reported.received))
    }
}

impl Vault {
    /// Takes the report of a process server. `revoked` are the serials of refused certificates.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn take_report(
        &self,
        process_server: &str,
        report: ProcessServerReport,
        revoked: Vec<String>,
        now: Timestamp,
    ) -> Result<VaultHello, VaultError> {
        let servers: Vec<ServerId> = report
            .servers
            .iter()
            .filter(|server| server.agent.is_some())
            .map(|server| server.server)
            .collect();
        let (to_note, differing) = self.live().take(process_server, report, now);
        if let Some(row) = to_note {
            self.note_heard(&row).await?;
        }
        for server in servers {
            let is_here =
                self.live().server(server).is_some_and(|live| live.process_server == process_server);
            if is_here {
                self.route(server, process_server).await?;
            }
        }
        let differing = differing.into_iter().map(|clock| clock_event(process_server, &clock, now));
        self.note_all(&differing.collect::<Vec<_>>()).await?;
        Ok(VaultHello { vault: self.id(), time: now, revoked })
    }

    /// Notes in the catalog when everybody was last heard of, for the next start of the vault.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn note_all_heard(&self) -> Result<(), VaultError> {
        let heard = self.live().all_heard();
        for row in &heard {
            self.note_heard(row).await?;
        }
        Ok(())
    }

    async fn note_heard(&self, row: &api::ProcessServer) -> Result<(), VaultError> {
        let servers = self.live().servers_heard(&row.name);
        Ok(self.catalog.put_heard(row, &servers).await?)
    }
}

/// A clock that differs from the vault's.
struct DifferingClock {
    server: Option<ServerId>,
    difference: SignedDuration,
}

impl Live {
    fn take(
        &mut self,
        name: &str,
        report: ProcessServerReport,
        now: Timestamp,
    ) -> (Option<api::ProcessServer>, Vec<DifferingClock>) {
        let row = api_process_server(name, &report, now);
        let known = self.process_servers.get(name);
        let is_noted = known.is_some_and(|known| {
            known.report.version == report.version && now.duration_since(known.noted) < NOTED_EVERY
        });
        let noted = known.filter(|_| is_noted).map_or(now, |known| known.noted);
        let servers: Vec<ServerId> = report.servers.iter().map(|server| server.server).collect();
        let own = rpo::correction(report.time, now);
        self.process_servers.insert(name.to_owned(), Reported { report, received: now, noted });
        let mut differing = Vec::new();
        // Told once, when it begins; not with every report.
        if self.differs_anew(name.to_owned(), own) {
            differing.push(DifferingClock { server: None, difference: own });
        }
        for server in servers {
            let correction = self.server(server).map_or(SignedDuration::ZERO, |live| live.agent_correction);
            if self.differs_anew(server.to_string(), correction) && own.is_zero() {
                differing.push(DifferingClock { server: Some(server), difference: correction });
            }
        }
        ((!is_noted).then_some(row), differing)
    }

    fn differs_anew(&mut self, whose: String, correction: SignedDuration) -> bool {
        if correction.is_zero() {
            self.clock_differs.remove(&whose);
            return false;
        }
        self.clock_differs.insert(whose)
    }
}

fn clock_event(process_server: &str, clock: &DifferingClock, now: Timestamp) -> Event {
    let ahead = if clock.difference.is_negative() { "ahead of" } else { "behind" };
    let seconds = clock.difference.unsigned_abs().as_secs();
    let whose = match clock.server {
        Some(_) => "The server's clock".to_owned(),
        None => format!("The clock of the process server {process_server}"),
    };
    Event {
        time: now,
        severity: Severity::Warning,
        code: "clock_differs".into(),
        server: clock.server,
        disk: None,
        message: format!("{whose} is {seconds} s {ahead} the vault's; ages are corrected for that."),
        next_step: "Synchronise the clocks, for example with chrony.".into(),
    }
}

fn api_process_server(name: &str, report: &ProcessServerReport, heard: Timestamp) -> api::ProcessServer {
    let spool_state = match report.spool_state {
        SpoolState::Good => "good",
        SpoolState::Warning => "warning",
        SpoolState::Critical => "critical",
        SpoolState::Throttling => "throttling",
        SpoolState::Full => "full",
        SpoolState::ReadOnly => "read-only",
    };
    let cut = |bytes: u64| bytes.min(u64::MAX >> 1);
    api::ProcessServer {
        name: name.to_owned(),
        version: report.version.chars().take(64).collect(),
        heard,
        spool_state: spool_state.to_owned(),
        spool_total_bytes: cut(report.spool_total_bytes),
        spool_free_bytes: cut(report.spool_free_bytes),
    }
}
