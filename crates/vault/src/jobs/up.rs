//! Whether a machine is up: its probes, asked again and again until all pass or its time is over.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use lifeboat_api::{Probe as WantedProbe, ProbeResult, Target};
use lifeboat_compute::{MachineSpec, MachineStatus, Probe, Provider, SshAccess};

use super::JobError;
use super::request::Verdict;

/// Time between two looks at a machine.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The text that a login on a serial console shows.
const LOGIN: &str = "login:";

/// What decides that a machine is up.
#[derive(Debug)]
pub(super) struct Probes {
    probes: Vec<Probe>,
    /// All of them have to pass, or one.
    all: bool,
    results: Vec<ProbeResult>,
}

impl Probes {
    /// `access` is for the commands among them.
    pub fn of(target: &Target, access: &SshAccess) -> Self {
        let (wanted, all) = wanted(target);
        let probes: Vec<_> = wanted.iter().map(|wanted| probe(wanted, access)).collect();
        let result = |probe: &Probe| ProbeResult {
            probe: probe.to_string(),
            passed: false,
            after_ms: None,
            message: None,
        };
        let results = probes.iter().map(result).collect();
        Self { probes, all, results }
    }

    /// Whether one of them is a command over SSH.
    pub fn need_key(target: &Target) -> bool {
        target.probes.iter().any(|probe| matches!(probe, WantedProbe::Run { .. }))
    }

    /// The ports of the machine that have to be reached for them.
    pub fn ports(target: &Target) -> Vec<u16> {
        let mut ports: Vec<u16> = wanted(target).0.iter().filter_map(port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Looks at the machine until it is up, it has ended, or its time is over. Counts from `since`.
    /// Each probe is attempted at its own pace: one may wait long for an answer.
    pub async fn until_up(
        self,
        provider: &dyn Provider,
        spec: &MachineSpec,
        since: Timestamp,
        within: Duration,
        clock: fn() -> Timestamp,
    ) -> Result<Verdict, JobError> {
        let watched =
            Watched { all: self.all, results: Mutex::new(self.results), elapsed: &|| elapsed(since, clock) };
        let probing = join_all(self.probes.iter().enumerate().map(async |(place, probe)| {
            while let Err(message) = attempt(probe, provider, spec).await {
                watched.results()[place].message = Some(message);
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            let after_ms = Some(millis((watched.elapsed)()));
            let passed = &mut watched.results()[place];
            (passed.passed, passed.after_ms, passed.message) = (true, after_ms, None);
        }));
        let watching = watched.until_decided(provider, spec, within);
        let probing = async {
            probing.await;
            // All have passed, which the other sees.
            std::future::pending::<std::convert::Infallible>().await
        };
        let decided = tokio::select! {
            decided = watching => decided?,
            never = probing => match never {},
        };
        let probes = watched.results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let boot_ms = decided.up.then(|| boot_ms(&probes, self.all)).flatten();
        Ok(Verdict { probes, boot_ms, ..decided })
    }
}

/// The probes of a machine, while they are being attempted.
struct Watched<'a> {
    all: bool,
    results: Mutex<Vec<ProbeResult>>,
    elapsed: &'a (dyn Fn() -> Duration + Sync),
}

impl Watched<'_> {
    fn results(&self) -> MutexGuard<'_, Vec<ProbeResult>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it came up, and a sentence that says so; the rest is left open.
    async fn until_decided(
        &self,
        provider: &dyn Provider,
        spec: &MachineSpec,
        within: Duration,
    ) -> Result<Verdict, JobError> {
        let decided =
            |up, is_off, sentence| Verdict { up, is_off, sentence, probes: Vec::new(), boot_ms: None };
        loop {
            let elapsed = (self.elapsed)();
            let is_off = match provider.status(spec.id).await? {
                MachineStatus::Off { why } => Some(why),
                _ => None,
            };
            // After the status: what was said before the end counts.
            if let Some(ms) = boot_ms(&self.results(), self.all) {
                let seconds = Duration::from_millis(ms).as_secs_f64();
                return Ok(decided(true, false, format!("The machine was up after {seconds:.0} s.")));
            }
            if let Some(why) = is_off {
                return Ok(decided(false, true, format!("The machine ended before it was up: {why}.")));
            }
            if elapsed >= within {
                return Ok(decided(false, false, self.not_up(within)));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn not_up(&self, within: Duration) -> String {
        let results = self.results();
        let missing: Vec<_> =
            results.iter().filter(|result| !result.passed).map(|result| result.probe.as_str()).collect();
        format!(
            "The machine did not come up within {} s: {}. Look at its console, or give it more time with `lifeboat \
             target set --up-within`.",
            within.as_secs(),
            missing.join(if self.all { ", " } else { " and " })
        )
    }
}

/// Tries a probe once. Whether the machine has ended is asked elsewhere.
async fn attempt(probe: &Probe, provider: &dyn Provider, spec: &MachineSpec) -> Result<(), String> {
    match probe.attempt(provider, spec.id).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(waiting)) => Err(waiting.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// When the probes that decide had passed: the last one of all, or the first one of any.
fn boot_ms(results: &[ProbeResult], all: bool) -> Option<u64> {
    let mut passed = results.iter().filter(|result| result.passed).map(|result| result.after_ms.unwrap_or(0));
    if !all {
        return passed.min();
    }
    let last = passed.by_ref().max();
    last.filter(|_| results.iter().all(|result| result.passed))
}

fn elapsed(since: Timestamp, clock: fn() -> Timestamp) -> Duration {
    Duration::try_from(clock().duration_since(since)).unwrap_or_default()
}

fn millis(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// The probes of a machine, and whether all of them have to pass. Where none were set one of two has to.
fn wanted(target: &Target) -> (Vec<WantedProbe>, bool) {
    if target.probes.is_empty() {
        (vec![WantedProbe::Console { text: LOGIN.to_owned() }, WantedProbe::Ssh { port: 22 }], false)
    } else {
        (target.probes.clone(), true)
    }
}

/// The port of the machine that a probe needs.
fn port(probe: &WantedProbe) -> Option<u16> {
    match probe {
        WantedProbe::Console { .. } => None,
        WantedProbe::Tcp { port }
        | WantedProbe::Ssh { port }
        | WantedProbe::Http { port, .. }
        | WantedProbe::Run { port, .. } => Some(*port),
    }
}

fn probe(wanted: &WantedProbe, access: &SshAccess) -> Probe {
    match wanted {
        WantedProbe::Console { text } => Probe::Console { pattern: text.clone() },
        WantedProbe::Tcp { port } => Probe::Tcp { port: *port },
        WantedProbe::Ssh { port } => Probe::SshBanner { port: *port },
        WantedProbe::Http { port, path, status } => {
            Probe::Http { port: *port, path: path.clone(), status: *status }
        }
        WantedProbe::Run { command, user, port } => Probe::SshCommand {
            port: *port,
            user: user.clone(),
            command: command.clone(),
            access: access.clone(),
        },
    }
}
