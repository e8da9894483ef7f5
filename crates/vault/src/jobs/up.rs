//! Whether a machine is up: its probes, asked again and again until all pass or its time is over.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_api::{Probe as WantedProbe, ProbeResult, Target};
use lifeboat_compute::{MachineSpec, MachineStatus, Probe, Provider};

use super::JobError;
use super::request::Verdict;

/// Time between two looks at a machine.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    pub fn of(target: &Target) -> Self {
        let (probes, all) = if target.probes.is_empty() {
            (vec![Probe::Console { pattern: LOGIN.to_owned() }, Probe::SshBanner { port: 22 }], false)
        } else {
            (target.probes.iter().map(probe).collect(), true)
        };
        let result = |probe: &Probe| ProbeResult {
            probe: probe.to_string(),
            passed: false,
            after_ms: None,
            message: None,
        };
        let results = probes.iter().map(result).collect();
        Self { probes, all, results }
    }

    /// The ports of the machine that have to be reached for them.
    pub fn ports(target: &Target) -> Vec<u16> {
        let mut ports: Vec<u16> = Self::of(target).probes.iter().filter_map(port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Looks at the machine until it is up, it has ended, or its time is over. Counts from `since`.
    pub async fn until_up(
        mut self,
        provider: &dyn Provider,
        spec: &MachineSpec,
        since: Timestamp,
        within: Duration,
        clock: fn() -> Timestamp,
    ) -> Result<Verdict, JobError> {
        loop {
            let elapsed = Duration::try_from(clock().duration_since(since)).unwrap_or_default();
            let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            for (probe, result) in
                self.probes.iter().zip(&mut self.results).filter(|(_, result)| !result.passed)
            {
                match probe.attempt(provider, spec.id).await {
                    Ok(Ok(())) => {
                        (result.passed, result.after_ms, result.message) = (true, Some(elapsed_ms), None);
                    }
                    Ok(Err(waiting)) => result.message = Some(waiting.to_string()),
                    // Whether the machine has ended is asked below.
                    Err(error) => result.message = Some(error.to_string()),
                }
            }
            let passed = |result: &ProbeResult| result.passed;
            let is_up =
                if self.all { self.results.iter().all(passed) } else { self.results.iter().any(passed) };
            if is_up {
                let sentence = format!("The machine was up after {:.0} s.", elapsed.as_secs_f64());
                return Ok(self.verdict(true, sentence, Some(elapsed_ms)));
            }
            if let MachineStatus::Off { why } = provider.status(spec.id).await? {
                let sentence = format!("The machine ended before it was up: {why}.");
                return Ok(self.verdict(false, sentence, None));
            }
            if elapsed >= within {
                let missing: Vec<_> = self
                    .results
                    .iter()
                    .filter(|result| !result.passed)
                    .map(|result| result.probe.as_str())
                    .collect();
                let sentence = format!(
                    "The machine did not come up within {} s: {}. Look at its console, or give it more time with \
                     `lifeboat target set --up-within`.",
                    within.as_secs(),
                    missing.join(if self.all { ", " } else { " and " })
                );
                return Ok(self.verdict(false, sentence, None));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn verdict(self, up: bool, sentence: String, boot_ms: Option<u64>) -> Verdict {
        Verdict { up, sentence, probes: self.results, boot_ms }
    }
}

/// The port of the machine that a probe needs.
fn port(probe: &Probe) -> Option<u16> {
    match probe {
        Probe::Console { .. } => None,
        Probe::Tcp { port }
        | Probe::SshBanner { port }
        | Probe::Http { port, .. }
        | Probe::SshCommand { port, .. } => Some(*port),
    }
}

fn probe(wanted: &WantedProbe) -> Probe {
    match wanted {
        WantedProbe::Console { text } => Probe::Console { pattern: text.clone() },
        WantedProbe::Tcp { port } => Probe::Tcp { port: *port },
        WantedProbe::Ssh { port } => Probe::SshBanner { port: *port },
        WantedProbe::Http { port, path, status } => {
            Probe::Http { port: *port, path: path.clone(), status: *status }
        }
    }
}
