//! Removing points, and deleting what is retired.

use jiff::Timestamp;
use lifeboat_wire::event::{Event, Severity};

use super::Retention;
use super::manifests::{set, views};
use super::plan::{PROVEN, Plan};
use crate::catalog::{PointRow, RetentionChange, ServerRow};
use crate::error::VaultError;

impl Retention {
    pub(super) async fn thin_server(&self, server: &ServerRow, now: Timestamp) -> Result<(), VaultError> {
        self.vault.settle(server.id, now).await?;
        let lock = self.server_of(server.id);
        let _guard = lock.lock().await;
        self.settle_manifests(server.id).await?;
        let (points, plan) = self.plan_of(server, now).await?;
        self.tell_of_silences(server, &plan, now).await?;
        if plan.removed.is_empty() {
            return Ok(());
        }
        let removed = set(&plan.removed);
        let (gone, kept): (Vec<&PointRow>, Vec<&PointRow>) =
            points.iter().partition(|point| removed.contains(&point.id));
        let files = self.vault.catalog().files_of_server(server.id).await?;
        let (before, _) = views(&points.iter().collect::<Vec<_>>(), &files);
        let (after, unneeded) = views(&kept, &files);
        let changed: Vec<_> = kept
            .iter()
            .filter_map(|point| Some((*point, after.get(&point.id)?)))
            .filter(|(point, view)| before.get(&point.id) != Some(view))
            .collect();
        self.step("points chosen")?;
        self.write_views(server.id, &changed).await?;
        let manifest = |point: &PointRow| self.vault.names().point(point.server, point.number, point.id);
        let change = RetentionChange {
            server: server.id,
            removed_points: gone.iter().map(|point| (point.id, manifest(point))).collect(),
            removed_files: unneeded,
            added_files: Vec::new(),
            now,
        };
        self.vault.catalog().apply(&change).await?;
        self.count(|figures| figures.points += gone.len() as u64);
        tracing::debug!(server = %server.id, removed = gone.len(), kept = kept.len(), "thinned out points");
        self.step("points removed")
    }

    /// A long silence is perhaps none: somebody should look at the clocks.
    async fn tell_of_silences(
        &self,
        server: &ServerRow,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        for silence in &plan.silences {
            let is_short = silence.to.duration_since(silence.from) < PROVEN;
            if is_short || !self.memory().silences.insert(silence.before) {
                continue;
            }
            self.vault
                .note(Event {
                    time: now,
                    severity: Severity::Warning,
                    code: "retention_waits".into(),
                    server: Some(server.id),
                    disk: None,
                    message: format!(
                        "No points between {:.0} and {:.0}: either none were taken, or a clock jumped. Older \
                         points are not thinned out for that time before points were taken for a day.",
                        silence.from, silence.to
                    ),
                    next_step: "If a clock is wrong, set it right within that day.".into(),
                })
                .await?;
        }
        Ok(())
    }

    /// Deletes retired objects: manifests at once, files after the grace time.
    pub(super) async fn sweep(&self, now: Timestamp) -> Result<(), VaultError> {
        let catalog = self.vault.catalog();
        // After a clock was set back the grace time of some would last as long as it had been ahead.
        catalog.retired_not_after(now).await?;
        for retired in catalog.retired_objects().await? {
            let waited = now.duration_since(retired.retired);
            if retired.is_file && waited < self.settings.delete_after {
                continue;
            }
            // Never true; but the object could not be had back.
            if retired.is_file && catalog.file(&retired.object).await?.is_some() {
                tracing::error!(object = retired.object, "a retired file is needed and was not deleted");
                continue;
            }
            self.step("before deleting")?;
            self.vault.store().delete(&retired.object).await?;
            self.step("deleted")?;
            catalog.forget_retired(&retired.object).await?;
            self.count(|figures| figures.deleted += 1);
        }
        Ok(())
    }
}
