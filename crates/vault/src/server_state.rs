//! What state a server is in, from its agent's newest report and its newest point. Pure.

use jiff::{SignedDuration, Timestamp};
use lifeboat_api::{Capture, Protection, Rpo};
use lifeboat_model::Span;
use lifeboat_wire::agent::CaptureMode;
use lifeboat_wire::process_server::SpoolReport;

/// Who is silent for so long is disconnected.
pub(crate) const SILENT: SignedDuration = SignedDuration::from_secs(60);

/// What is known of a server.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The vault's clock.
    pub now: Timestamp,
    /// Since when the server runs at the recovery site, if it does.
    pub fenced: Option<Timestamp>,
    /// Since when the vault listens.
    pub listening_since: Timestamp,
    /// How the server is being captured, by its agent's newest report.
    pub capture: Option<&'a CaptureMode>,
    /// When its agent was last heard of, by the vault's clock; before the vault was started, when no
    /// process server has told of it since.
    pub heard: Option<Timestamp>,
    /// The process server that told of it, and when that was last heard of.
    pub process_server: Option<(&'a str, Timestamp)>,
    /// What the spool holds.
    pub spool: Option<&'a SpoolReport>,
    /// None before the first point.
    pub rpo: Option<&'a Rpo>,
    /// The policy's interval.
    pub interval: Span,
    /// The first trouble of a disk.
    pub disk_trouble: Option<&'a str>,
}

/// The state and, where there is something to say, one sentence about it.
#[must_use]
pub fn protection(observed: &Observed<'_>) -> (Protection, Option<String>) {
    if let Some(since) = observed.fenced {
        return (Protection::FailedOver, Some(format!("It runs at the recovery site since {since:.0}.")));
    }
    if let Some(reason) = silence(observed) {
        return (Protection::Disconnected, Some(reason));
    }
    let has_points = observed.rpo.is_some();
    let (state, reason) = match observed.capture {
        None if has_points => (
            Protection::Protected,
            Some("The vault has just started and waits for the agent's report.".into()),
        ),
        None => (Protection::Discovered, None),
        Some(CaptureMode::Starting) if has_points => {
            (Protection::Protected, Some("The agent is starting.".into()))
        }
        Some(CaptureMode::Starting) => (Protection::Discovered, None),
        Some(CaptureMode::InitialCopy) => (Protection::InitialCopy, None),
        Some(CaptureMode::Resync { reason }) if has_points => (Protection::Resync, Some(reason.clone())),
        Some(CaptureMode::Resync { reason }) => (Protection::InitialCopy, Some(reason.clone())),
        Some(CaptureMode::Stalled { reason }) => (Protection::Stalled, Some(reason.clone())),
        Some(CaptureMode::Optimistic | CaptureMode::Quiesced { .. }) => match observed.rpo {
            None => (Protection::InitialCopy, Some("The first point is on its way.".into())),
            Some(rpo) => follows(observed, rpo),
        },
    };
    let reason = reason.or_else(|| observed.disk_trouble.map(str::to_owned));
    (state, reason)
}

/// Whether newer points follow the newest one.
fn follows(observed: &Observed<'_>, rpo: &Rpo) -> (Protection, Option<String>) {
    let late_ms = observed.interval.duration().as_millis().saturating_mul(10).max(60_000);
    let upload_trouble = observed.spool.and_then(|spool| spool.upload_trouble.clone());
    if u128::from(rpo.age_ms) <= late_ms {
        return (Protection::Protected, upload_trouble);
    }
    let gate = match rpo.gated_by.as_str() {
        "capture" => "the agent has not captured a newer one",
        "queue" => "newer ones have not reached the process server",
        "transfer" => "newer ones wait on the process server to be uploaded",
        _ => "a newer one is being committed",
    };
    let reason = format!("The newest point is {} s old: {gate}.", rpo.age_ms / 1000);
    (Protection::Stalled, Some(upload_trouble.unwrap_or(reason)))
}

fn silence(observed: &Observed<'_>) -> Option<String> {
    let is_silent = |since: Timestamp| observed.now.duration_since(since) >= SILENT;
    match (observed.process_server, observed.heard) {
        (Some((name, heard)), _) if is_silent(heard) => {
            Some(format!("The process server {name} was last heard of at {heard:.0}."))
        }
        // Of a vault that has just started, others may not know yet that it is back.
        (None, Some(_)) if !is_silent(observed.listening_since) => None,
        (_, Some(heard)) if is_silent(heard) => Some(format!("The agent was last heard of at {heard:.0}.")),
        (_, None) if is_silent(observed.listening_since) => {
            Some("Nothing was heard of the agent since the vault was started.".to_owned())
        }
        _ => None,
    }
}

/// How a server is captured, as programs read it.
#[must_use]
pub fn capture(mode: Option<&CaptureMode>) -> Capture {
    let (mode, reason) = match mode {
        None | Some(CaptureMode::Starting) => ("starting", None),
        Some(CaptureMode::InitialCopy) => ("initial-copy", None),
        Some(CaptureMode::Resync { reason }) => ("resync", Some(reason)),
        Some(CaptureMode::Optimistic) => ("optimistic", None),
        Some(CaptureMode::Quiesced { reason }) => ("quiesced", Some(reason)),
        Some(CaptureMode::Stalled { reason }) => ("stalled", Some(reason)),
    };
    Capture { mode: mode.to_owned(), reason: reason.cloned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpo::{Progress, split};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn state(
        capture: Option<&CaptureMode>,
        heard: Option<i64>,
        committed: Option<i64>,
    ) -> (Protection, String) {
        let now = at(1_000);
        let interval = Span::seconds(5);
        let rpo = committed.map(|committed| {
            let committed = at(committed);
            split(now, Progress { committed, uploaded: None, sealed: None, captured: None }, interval)
        });
        let heard = heard.map(at);
        let (state, reason) = protection(&Observed {
            now,
            fenced: None,
            listening_since: at(0),
            capture,
            heard,
            process_server: heard.map(|heard| ("hall-2", heard)),
            spool: None,
            rpo: rpo.as_ref(),
            interval,
            disk_trouble: None,
        });
        (state, reason.unwrap_or_default())
    }

    #[test]
    fn a_server_is_in_the_state_that_its_agent_and_points_show() {
        let optimistic = Some(&CaptureMode::Optimistic);
        assert_eq!(state(optimistic, Some(999), Some(995)).0, Protection::Protected);
        assert_eq!(state(optimistic, Some(999), None).0, Protection::InitialCopy);
        assert_eq!(state(Some(&CaptureMode::Starting), Some(999), None).0, Protection::Discovered);
        let resync = CaptureMode::Resync { reason: "The server was restarted.".into() };
        assert_eq!(
            state(Some(&resync), Some(999), Some(900)),
            (Protection::Resync, "The server was restarted.".into())
        );
        assert_eq!(state(Some(&resync), Some(999), None).0, Protection::InitialCopy);
    }

    #[test]
    fn an_old_point_stalls_with_the_step_that_gates_it() {
        let (state, reason) = state(Some(&CaptureMode::Optimistic), Some(999), Some(800));
        assert_eq!(state, Protection::Stalled);
        assert_eq!(reason, "The newest point is 200 s old: the agent has not captured a newer one.");
    }

    #[test]
    fn a_minute_of_silence_disconnects_and_says_of_whom() {
        let optimistic = Some(&CaptureMode::Optimistic);
        assert_eq!(state(optimistic, Some(941), Some(940)).0, Protection::Protected);
        let (protection, reason) = state(optimistic, Some(940), Some(940));
        assert_eq!(protection, Protection::Disconnected);
        assert!(reason.contains("process server hall-2"), "{reason}");
        assert_eq!(state(None, None, Some(940)).0, Protection::Disconnected);
    }

    #[test]
    fn a_vault_that_was_started_waits_a_minute_and_then_says_when_the_agent_was_heard() {
        let silence = |listening_since: i64| {
            silence(&Observed {
                fenced: None,
                now: at(1_000),
                listening_since: at(listening_since),
                capture: None,
                heard: Some(at(800)),
                process_server: None,
                spool: None,
                rpo: None,
                interval: Span::seconds(5),
                disk_trouble: None,
            })
        };
        assert_eq!(silence(990), None);
        assert_eq!(silence(900).unwrap(), "The agent was last heard of at 1970-01-01T00:13:20Z.");
    }
}
