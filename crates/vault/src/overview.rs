//! What operators see: servers, points, status; and how they name them.

use jiff::{SignedDuration, Timestamp};
use lifeboat_api as api;
use lifeboat_model::{PointId, PointKind, ServerId};
use lifeboat_wire::agent::DiskReport;

use crate::catalog::{PointFilter, PointRow, ServerRow};
use crate::error::{LookupError, PointAt, Removal, VaultError};
use crate::facts;
use crate::reports::ServerLive;
use crate::rpo::{self, Progress};
use crate::server_state::{self, Observed};
use crate::vault::{Vault, unknown};

/// Events in a status.
const ATTENTION: u32 = 10;
/// The words that mean the newest point of any kind.
pub(crate) const LATEST: [&str; 2] = ["latest", "latest-processed"];
/// The word that means the newest point that the server's applications have prepared.
const LATEST_APP: &str = "latest-app";

impl Vault {
    /// The server that an operator means: by its name, its id or a unique beginning of either.
    ///
    /// # Errors
    /// When there is none or more than one, or the catalog fails.
    pub async fn find_server(&self, text: &str) -> Result<ServerId, VaultError> {
        let servers = self.catalog.servers().await?;
        if let Some(server) = servers.iter().find(|row| row.name == text || row.id.to_string() == text) {
            return Ok(server.id);
        }
        let is_beginning = |row: &&ServerRow| {
            !text.is_empty() && (row.id.to_string().starts_with(text) || row.name.starts_with(text))
        };
        let matching: Vec<&ServerRow> = servers.iter().filter(is_beginning).collect();
        match matching.as_slice() {
            [server] => Ok(server.id),
            [] => Err(unknown("server", text, servers.iter().map(|row| row.name.clone()).collect())),
            several => {
                let matching = several.iter().map(|row| format!("{} ({})", row.id, row.name)).collect();
                Err(LookupError::Ambiguous { what: "server", text: text.to_owned(), matching }.into())
            }
        }
    }

    /// The point of a server that an operator means: `latest` or `latest-processed`, `latest-app`, an id, a
    /// unique beginning of one, or a time, which means the newest point not after it.
    ///
    /// # Errors
    /// When there is none or more than one, or the catalog fails.
    pub async fn find_point(&self, server: ServerId, text: &str) -> Result<PointId, VaultError> {
        if text == LATEST_APP {
            return self.latest_app(server).await;
        }
        if LATEST.contains(&text) {
            let newest = self.catalog.newest(server).await?;
            return match newest {
                Some(newest) => Ok(newest.point),
                None => Err(self.no_point(server, text, None).await),
            };
        }
        if let Some(time) = time_of(text) {
            return match self.catalog.point_at(server, time).await? {
                Some(point) => Ok(point),
                None => {
                    let removed = self.catalog.removed_at(server, time).await?;
                    let removed = removed.map(|point| Removal { point, by_time: true });
                    Err(self.no_point(server, text, removed).await)
                }
            };
        }
        let matching = match text {
            "" => Vec::new(),
            beginning => self.catalog.points_beginning(server, beginning).await?,
        };
        match matching.as_slice() {
            [point] => Ok(*point),
            [] => Err(self.no_such_point(server, text).await),
            several => {
                let matching = several.iter().map(PointId::to_string).collect();
                Err(LookupError::Ambiguous { what: "point", text: text.to_owned(), matching }.into())
            }
        }
    }

    async fn latest_app(&self, server: ServerId) -> Result<PointId, VaultError> {
        if let Some((point, _)) = self.catalog.newest_of_kind(server, PointKind::Application).await? {
            return Ok(point);
        }
        if self.catalog.newest(server).await?.is_none() {
            return Err(self.no_point(server, LATEST_APP, None).await);
        }
        let name = self.catalog.server(server).await?.map_or_else(|| server.to_string(), |row| row.name);
        let filesystem = self.catalog.newest_of_kind(server, PointKind::Filesystem).await?;
        let filesystem = filesystem.map(|(id, time)| PointAt { id, time });
        Err(LookupError::NoAppPoint { server: name, filesystem }.into())
    }

    /// The error for an id, or its beginning, that no point of a server has.
    pub(crate) async fn no_such_point(&self, server: ServerId, text: &str) -> VaultError {
        if text.is_empty() {
            return self.no_point(server, text, None).await;
        }
        match self.catalog.removed_beginning(server, text).await {
            Ok(removed) => {
                let one = <[_; 1]>::try_from(removed).ok();
                let removed = one.map(|[point]| Removal { point, by_time: false });
                self.no_point(server, text, removed).await
            }
            Err(error) => error.into(),
        }
    }

    async fn no_point(&self, server: ServerId, text: &str, removed: Option<Removal>) -> VaultError {
        let ends = match self.catalog.ends(server).await {
            Ok(ends) => ends.map(|ends| Box::new(ends.map(|(id, time)| PointAt { id, time }))),
            Err(error) => return error.into(),
        };
        let text = text.chars().take(80).collect();
        LookupError::NoPoint { text, removed: removed.map(Box::new), ends }.into()
    }

    /// One server.
    ///
    /// # Errors
    /// When there is no such server or the catalog fails.
    pub async fn server(&self, server: ServerId, now: Timestamp) -> Result<api::Server, VaultError> {
        let row = self.catalog.server(server).await?;
        let row = row.ok_or_else(|| unknown("server", &server.to_string(), Vec::new()))?;
        self.describe(row, now).await
    }

    /// All servers, by name.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn servers(&self, now: Timestamp) -> Result<Vec<api::Server>, VaultError> {
        let mut servers = Vec::new();
        for row in self.catalog.servers().await? {
            servers.push(self.describe(row, now).await?);
        }
        Ok(servers)
    }

    /// A server's points, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn points(&self, server: ServerId, limit: u32) -> Result<Vec<api::Point>, VaultError> {
        let rows = self.catalog.points(PointFilter::Newest(server, limit)).await?;
        let damage = self.known_damage(server).await?;
        let points = rows.iter().map(point);
        Ok(points.map(|point| api::Point { damage: damage(&point), ..point }).collect())
    }

    /// The state of the site at a glance.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn status(&self, now: Timestamp) -> Result<api::Status, VaultError> {
        let servers = self.servers(now).await?;
        let mut process_servers = self.catalog.process_servers().await?;
        for known in &mut process_servers {
            if let Some(live) = self.live().heard(&known.name) {
                *known = live;
            }
        }
        Ok(api::Status {
            vault: self.id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time: now,
            store: self.store.url().to_owned(),
            store_free_bytes: self.store.free_bytes(),
            stored_bytes: servers.iter().map(|server| server.stored_bytes).sum(),
            servers,
            process_servers,
            open_volumes: self.catalog.open_volumes().await?,
            attention: self.catalog.attention(ATTENTION).await?,
        })
    }

    async fn describe(&self, row: ServerRow, now: Timestamp) -> Result<api::Server, VaultError> {
        let (live, being_committed) = {
            let reports = self.live();
            (reports.server(row.id), reports.being_committed(row.id))
        };
        let newest_point = self.catalog.points(PointFilter::Newest(row.id, 1)).await?.pop();
        let totals = self.catalog.totals(row.id).await?;
        let disks = self.catalog.disks(row.id).await?;
        let agent = live.as_ref().and_then(|live| live.report.agent.as_ref());
        let rpo = newest_point.as_ref().map(|newest| {
            rpo::split(now, progress(newest, being_committed, live.as_ref()), row.policy.interval)
        });
        // A process server that was restarted may not have heard of the agent yet.
        let heard = live.as_ref().and_then(ServerLive::heard).or(row.heard);
        let trouble =
            agent.into_iter().flat_map(|agent| &agent.disks).find_map(|disk| disk.trouble.as_deref());
        let capture = agent.map(|agent| &agent.capture);
        let last_drill = self.last_drill(row.id).await?;
        let facts = self.catalog.facts(row.id).await?;
        let (state, reason) = server_state::protection(&Observed {
            now,
            fenced: row.fenced,
            listening_since: self.opened,
            capture,
            heard,
            process_server: live.as_ref().map(|live| (live.process_server.as_str(), live.reported)),
            spool: live.as_ref().map(|live| &live.report.spool),
            rpo: rpo.as_ref(),
            interval: row.policy.interval,
            disk_trouble: trouble,
        });
        let reported = |number| agent.and_then(|agent| agent.disks.iter().find(|disk| disk.disk == number));
        Ok(api::Server {
            id: row.id,
            name: row.name,
            state,
            reason,
            capture: server_state::capture(capture),
            rpo,
            newest_point: newest_point.as_ref().map(point),
            points: totals.points,
            stored_bytes: totals.stored_bytes,
            disks: disks
                .into_iter()
                .filter(|disk| !disk.removed)
                .map(|disk| describe_disk(disk.clone(), reported(disk.disk)))
                .collect(),
            spool_bytes: live.as_ref().map_or(0, |live| live.report.spool.bytes),
            process_server: live.as_ref().map(|live| live.process_server.clone()).or(row.process_server),
            heard,
            agent_version: agent.map(|agent| agent.version.clone()),
            kernel: agent.map(|agent| agent.kernel.clone()),
            policy: row.policy.into(),
            agent_memory_bytes: agent.map(|agent| agent.memory_bytes),
            agent_cpu_ms: agent.map(|agent| agent.cpu_ms),
            compared_point: row.compared_point,
            last_drill,
            facts: facts.as_ref().map(facts::in_short),
        })
    }
}

/// How far the newest points have come. Times T are the agent's, and the vault's clock is meant; but
/// for a committed point whose time was replaced (see [`point_time`](crate::point_time)): that is by
/// the clock that replaced it.
fn progress(committed: &PointRow, being_committed: Option<Timestamp>, live: Option<&ServerLive>) -> Progress {
    let correction = live.map_or(SignedDuration::ZERO, |live| live.agent_correction);
    let corrected = |time: Option<Timestamp>| shifted(time, correction);
    let of_committed = match committed.time {
        time if time == committed.committed => SignedDuration::ZERO,
        time if time == committed.sealed => {
            live.map_or(SignedDuration::ZERO, |live| live.process_server_correction)
        }
        _ => correction,
    };
    Progress {
        committed: shifted(Some(committed.time), of_committed).unwrap_or(committed.time),
        uploaded: corrected(being_committed),
        sealed: corrected(live.and_then(|live| live.report.spool.newest_sealed)),
        captured: corrected(live.and_then(|live| live.report.agent.as_ref()?.captured)),
    }
}

fn shifted(time: Option<Timestamp>, by: SignedDuration) -> Option<Timestamp> {
    time.map(|time| time.saturating_add(by).unwrap_or(time))
}

fn describe_disk(row: crate::catalog::DiskRow, report: Option<&DiskReport>) -> api::Disk {
    let copy = report.and_then(|report| report.copy).map(|copy| api::CopyProgress {
        done_bytes: copy.done_bytes,
        total_bytes: copy.total_bytes,
        sent_bytes: copy.sent_bytes,
        bytes_per_second: copy.bytes_per_second,
        left_seconds: copy.total_bytes.saturating_sub(copy.done_bytes).checked_div(copy.bytes_per_second),
    });
    api::Disk {
        number: row.disk,
        path: row.path,
        hardware_id: row.hardware_id,
        bytes: report.map(|report| report.bytes).filter(|bytes| *bytes > 0).unwrap_or(row.bytes),
        waiting_bytes: report.map_or(0, |report| report.waiting_bytes),
        copy,
        trouble: report.and_then(|report| report.trouble.clone()),
    }
}

/// A point as an operator sees it.
#[must_use]
pub fn point(row: &PointRow) -> api::Point {
    let disk = |disk: &crate::catalog::PointDiskRow| api::PointDisk {
        disk: disk.disk,
        epoch: disk.epoch,
        bytes: disk.bytes,
    };
    api::Point {
        id: row.id,
        time: row.time,
        kind: row.kind,
        disks: row.disks.iter().map(disk).collect(),
        bytes: row.bytes,
        capture_us: row.capture.duration_us,
        window_us: row.capture.window_us,
        frozen_us: row.capture.frozen_us,
        attempts: row.capture.attempts,
        sealed: row.sealed,
        uploaded: row.uploaded,
        committed: row.committed,
        damage: None,
    }
}

/// A point in time as an operator writes it. Without an offset it is UTC, as times are shown; without
/// a fraction it means the whole second, so that a time that was shown names the point it was shown for.
fn time_of(text: &str) -> Option<Timestamp> {
    let utc = || {
        // An id may look like a date without hyphens.
        let civil: jiff::civil::DateTime = text.contains('-').then(|| text.parse().ok())??;
        Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    };
    let time = text.parse().ok().or_else(utc)?;
    let rest_of_second = jiff::SignedDuration::from_nanos(999_999_999);
    if text.contains('.') { Some(time) } else { time.checked_add(rest_of_second).ok() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    #[test]
    fn times_are_read_as_they_are_shown() {
        for (text, means) in [
            ("2026-11-24 19:13:00", "2026-11-24T19:13:00.999999999Z"),
            ("2026-11-24T19:13:00Z", "2026-11-24T19:13:00.999999999Z"),
            ("2026-11-24T20:13:00+01:00", "2026-11-24T19:13:00.999999999Z"),
            ("2026-11-24T19:13:00.25Z", "2026-11-24T19:13:00.25Z"),
            ("2026-11-24 19:13:00.25", "2026-11-24T19:13:00.25Z"),
        ] {
            assert_eq!(time_of(text), Some(means.parse().unwrap()), "{text}");
        }
        for no_time in ["20261124", "2026112419130011", "latest", "19:13", ""] {
            assert_eq!(time_of(no_time), None, "{no_time}");
        }
    }
}
