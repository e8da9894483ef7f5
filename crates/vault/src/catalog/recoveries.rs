//! Servers' machines at the recovery site, how they are to look, and who owns a server's history.

use jiff::Timestamp;
use lifeboat_api::{MachinePurpose, TargetSettings};
use lifeboat_compute::MachineSpec;
use lifeboat_model::{JobId, MachineId, PointId, ServerId, VolumeId};
use sqlx::query;

use super::CatalogError;
use super::database::{Catalog, Connection, DatabaseRow};
use super::row::{RowValues, json_text, time_ns};

/// A server's machine at the recovery site.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveryRow {
    /// The server.
    pub server: ServerId,
    /// What it is for.
    pub purpose: MachinePurpose,
    /// The job that started it.
    pub job: JobId,
    /// The machine.
    pub machine: MachineId,
    /// The volume with its disks.
    pub volume: VolumeId,
    /// The point that it began with.
    pub point: PointId,
    /// The point's time T.
    pub point_time: Timestamp,
    /// When it was made.
    pub begun: Timestamp,
    /// When its failover was made final.
    pub committed: Option<Timestamp>,
    /// When an operator last had it stopped; none while it is to run.
    pub stopped: Option<Timestamp>,
    /// The machine as it was started.
    pub spec: MachineSpec,
}

macro_rules! select_recoveries {
    ($rest:literal) => {
        concat!(
            "SELECT server, purpose, job, machine, volume, point, point_ns, begun_ns, committed_ns, \
             stopped_ns, spec FROM recoveries ",
            $rest
        )
    };
}

impl Catalog {
    /// Notes a server's machine, instead of the one that there was.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn put_recovery(&self, recovery: &RecoveryRow) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO recoveries (server, purpose, job, machine, volume, point, point_ns, begun_ns, \
             committed_ns, stopped_ns, spec) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (server) \
             DO UPDATE SET purpose = excluded.purpose, job = excluded.job, machine = excluded.machine, \
             volume = excluded.volume, point = excluded.point, point_ns = excluded.point_ns, \
             begun_ns = excluded.begun_ns, committed_ns = excluded.committed_ns, \
             stopped_ns = excluded.stopped_ns, spec = excluded.spec",
        )
        .bind(recovery.server.to_string())
        .bind(purpose_word(recovery.purpose))
        .bind(recovery.job.to_string())
        .bind(recovery.machine.to_string())
        .bind(recovery.volume.to_string())
        .bind(recovery.point.to_string())
        .bind(time_ns(recovery.point_time)?)
        .bind(time_ns(recovery.begun)?)
        .bind(recovery.committed.map(time_ns).transpose()?)
        .bind(recovery.stopped.map(time_ns).transpose()?)
        .bind(json_text("spec", &recovery.spec)?);
        self.run_alone(statement).await.map(drop)
    }

    /// Notes when an operator had a server's machine stopped, if it is this one.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn set_stopped(
        &self,
        server: ServerId,
        machine: MachineId,
        stopped: Timestamp,
    ) -> Result<(), CatalogError> {
        let statement = query("UPDATE recoveries SET stopped_ns = $3 WHERE server = $1 AND machine = $2");
        let statement = statement.bind(server.to_string()).bind(machine.to_string()).bind(time_ns(stopped)?);
        self.run_alone(statement).await.map(drop)
    }

    /// Notes that a server's machine is to run, if it is this one and was stopped then; says whether it was.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn clear_stopped(
        &self,
        server: ServerId,
        machine: MachineId,
        stopped: Timestamp,
    ) -> Result<bool, CatalogError> {
        let statement = query(
            "UPDATE recoveries SET stopped_ns = NULL WHERE server = $1 AND machine = $2 AND stopped_ns = $3",
        );
        let statement = statement.bind(server.to_string()).bind(machine.to_string()).bind(time_ns(stopped)?);
        Ok(self.run_alone(statement).await? > 0)
    }

    /// Notes how a server's machine is started from now on, if it is this one.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn set_spec(&self, server: ServerId, spec: &MachineSpec) -> Result<(), CatalogError> {
        let statement = query("UPDATE recoveries SET spec = $3 WHERE server = $1 AND machine = $2")
            .bind(server.to_string())
            .bind(spec.id.to_string())
            .bind(json_text("spec", spec)?);
        self.run_alone(statement).await.map(drop)
    }

    /// Notes that a server's failover is final, unless that was noted before.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn set_committed(&self, server: ServerId, committed: Timestamp) -> Result<(), CatalogError> {
        let statement =
            query("UPDATE recoveries SET committed_ns = COALESCE(committed_ns, $2) WHERE server = $1")
                .bind(server.to_string())
                .bind(time_ns(committed)?);
        self.run_alone(statement).await.map(drop)
    }

    /// Forgets a server's machine, if it is this one; says whether it was.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn remove_recovery(&self, server: ServerId, machine: MachineId) -> Result<bool, CatalogError> {
        let statement = query("DELETE FROM recoveries WHERE server = $1 AND machine = $2")
            .bind(server.to_string())
            .bind(machine.to_string());
        Ok(self.run_alone(statement).await? > 0)
    }

    /// A server's machine.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn recovery(&self, server: ServerId) -> Result<Option<RecoveryRow>, CatalogError> {
        let statement = query(select_recoveries!("WHERE server = $1")).bind(server.to_string());
        self.optional(statement).await?.as_ref().map(recovery_row).transpose()
    }

    /// All machines, the oldest first.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn recoveries(&self) -> Result<Vec<RecoveryRow>, CatalogError> {
        let rows = self.all(query(select_recoveries!("ORDER BY begun_ns, server"))).await?;
        rows.iter().map(recovery_row).collect()
    }

    /// What an operator has set of how a server's machine is to look, if anything.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn target(&self, server: ServerId) -> Result<Option<TargetSettings>, CatalogError> {
        let statement = query("SELECT target FROM targets WHERE server = $1").bind(server.to_string());
        self.optional(statement).await?.map(|row| row.json("target")).transpose()
    }

    /// Sets how a server's machine is to look.
    ///
    /// # Errors
    /// When there is no such server, or the catalog fails.
    pub async fn put_target(&self, server: ServerId, target: &TargetSettings) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO targets (server, target) VALUES ($1, $2) \
             ON CONFLICT (server) DO UPDATE SET target = excluded.target",
        )
        .bind(server.to_string())
        .bind(json_text("target", target)?);
        self.run_alone(statement).await.map(drop)
    }

    /// Notes since when a server's source may not go on with its history; `None` when it may.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn set_fenced(&self, server: ServerId, fenced: Option<Timestamp>) -> Result<(), CatalogError> {
        let mut transaction = self.begin().await?;
        self.set_fenced_within(&mut transaction, server, fenced).await?;
        self.commit(transaction).await
    }

    pub(crate) async fn set_fenced_within(
        &self,
        connection: &mut Connection,
        server: ServerId,
        fenced: Option<Timestamp>,
    ) -> Result<(), CatalogError> {
        let statement = query("UPDATE servers SET fenced_ns = $2 WHERE id = $1")
            .bind(server.to_string())
            .bind(fenced.map(time_ns).transpose()?);
        self.run(connection, statement).await.map(drop)
    }
}

const fn purpose_word(purpose: MachinePurpose) -> &'static str {
    match purpose {
        MachinePurpose::Drill => "drill",
        MachinePurpose::Failover => "failover",
    }
}

fn recovery_row(row: &DatabaseRow) -> Result<RecoveryRow, CatalogError> {
    Ok(RecoveryRow {
        server: row.parsed("server")?,
        purpose: match row.text("purpose")?.as_str() {
            "drill" => MachinePurpose::Drill,
            "failover" => MachinePurpose::Failover,
            other => {
                let why = format!("{other:?} is no purpose of a machine");
                return Err(CatalogError::Value { column: "purpose".to_owned(), why });
            }
        },
        job: row.parsed("job")?,
        machine: row.parsed("machine")?,
        volume: row.parsed("volume")?,
        point: row.parsed("point")?,
        point_time: row.time("point_ns")?,
        begun: row.time("begun_ns")?,
        committed: row.optional_time("committed_ns")?,
        stopped: row.optional_time("stopped_ns")?,
        spec: row.json("spec")?,
    })
}
