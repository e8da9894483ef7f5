//! Copying the disks of a running machine to local files, and moving the machine over to them.
//!
//! QEMU copies (a mirror job for each disk), also while no provider is there. Meanwhile the disk's source is
//! what counts: it gets every write, and the copy gets it afterwards. When both are equal, QEMU is asked to
//! move. It holds the guest's reads and writes back, copies what is left, brings the copy to stable storage, and
//! waits (the job is *pending*). Only now the provider writes down, durably, that the copy counts, and then lets QEMU go on with
//! the copy alone. So at whatever moment the provider, QEMU or both end, what is written down names a file or
//! source that has every write that the guest was told is done:
//!
//! - QEMU ends before the moment of writing down: the source counts, and the copy is removed.
//! - QEMU ends after it: the copy counts, and the next start uses it.
//! - The provider ends: QEMU copies on. A guest that is being held waits, some milliseconds or until a provider
//!   is there again, and gets no error.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use lifeboat_model::{DiskNumber, MachineId};
use qapi::qmp::{
    BlockdevOnError, JobInfo, JobStatus, MirrorCopyMode, MirrorSyncMode, block_job_set_speed, blockdev_del,
    blockdev_mirror, job_cancel, job_complete, job_dismiss, job_finalize, query_jobs,
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Host;
use super::command_line::source_node;
use super::qmp::Qmp;
use super::settings::ANSWER_LIMIT;
use super::status::{Live, Observed};
use crate::directory::{LocalCopy, MachineDirectory, MachineState, Stage};
use crate::error::ComputeError;
use crate::hydration::{Asked, DiskHydration, HydrationState, HydrationTarget, asked};
use crate::spec::{DiskAddress, DiskFormat, MachineDisk};

/// How often copies are looked after.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often a step that takes QEMU a moment is looked after.
const LOOK_AGAIN_SOON: Duration = Duration::from_millis(5);

/// The machines that have a copy to look after.
#[derive(Debug, Default)]
pub(crate) struct Hydrating {
    machines: std::sync::Mutex<BTreeSet<MachineId>>,
    more: Notify,
}

impl Hydrating {
    fn add(&self, machine: MachineId) {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).insert(machine);
        self.more.notify_one();
    }

    fn all(&self) -> Vec<MachineId> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    fn done(&self, machine: MachineId) {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
    }
}

/// Looks after all copies for as long as the provider is there.
pub(crate) async fn move_machines(host: Arc<Host>) {
    loop {
        let machines = host.hydrating.all();
        if machines.is_empty() {
            host.hydrating.more.notified().await;
            continue;
        }
        for machine in machines {
            match host.look_after(machine).await {
                Ok(true) => {}
                Ok(false) => host.hydrating.done(machine),
                Err(error) => tracing::warn!(%machine, %error, "cannot look after the copies of its disks"),
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

impl Host {
    /// Looks after copies that an earlier provider began.
    pub(crate) fn resume_hydration(&self) -> Result<(), ComputeError> {
        for machine in self.machines.list()? {
            // Whoever asks for the machine learns that what is stored about it is damaged.
            if let Ok(Some(state)) = self.machines.directory(machine).load()
                && !state.copies.is_empty()
            {
                self.hydrating.add(machine);
            }
        }
        Ok(())
    }

    /// Brings the copies of a machine on. Whether there is more to do.
    async fn look_after(&self, machine: MachineId) -> Result<bool, ComputeError> {
        let lock = self.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let directory = self.machines.directory(machine);
        let Observed::Live(mut live) = self.observe(&directory).await? else { return Ok(false) };
        advance(&directory, &mut live).await
    }

    pub(crate) async fn hydrate(
        &self,
        machine: MachineId,
        disk: DiskNumber,
        target: &HydrationTarget,
    ) -> Result<(), ComputeError> {
        let lock = self.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let directory = self.machines.directory(machine);
        let mut live = self.live(machine).await?;
        advance(&directory, &mut live).await?;
        let spec = match asked(&live.state, disk, target)? {
            Asked::New(spec) => spec,
            Asked::Copying => {
                let speed = speed(target);
                return live.qmp.ask(block_job_set_speed { device: job_of(disk), speed }).await.map(drop);
            }
            Asked::Local => return Ok(()),
        };
        live.state.copies.retain(|copy| copy.disk != disk);
        live.state.copies.push(LocalCopy { disk, target: target.clone(), stage: Stage::Copying });
        // Written down before it is there: what is left of a copy that was cut short can be found.
        directory.store(&live.state)?;
        let begun = begin(&live.qmp, &spec, target).await;
        match &begun {
            Ok(()) => self.hydrating.add(machine),
            Err(error) => {
                let foreign = matches!(error, ComputeError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists);
                close_nodes(&live.qmp, disk).await?;
                if !foreign {
                    remove_file(&target.path)?;
                }
                live.state.copies.retain(|copy| copy.disk != disk);
                directory.store(&live.state)?;
            }
        }
        begun
    }

    pub(crate) async fn hydration(&self, machine: MachineId) -> Result<Vec<DiskHydration>, ComputeError> {
        let lock = self.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let (state, jobs) = match self.observe(&self.machines.directory(machine)).await? {
            Observed::Absent => return Err(ComputeError::NoMachine { machine }),
            Observed::HalfMade => return Ok(Vec::new()),
            Observed::Off(state) => (state, Vec::new()),
            Observed::Live(live) => (live.state, live.qmp.ask(query_jobs {}).await?),
        };
        let all = state.spec.disks.iter().filter_map(|disk| {
            let copy = state.copy_of(disk.number)?;
            let job = find(&jobs, disk.number);
            let bytes = |progress: i64| u64::try_from(progress).unwrap_or(0);
            let how_far = match &copy.stage {
                Stage::Failed { why } => HydrationState::Failed { why: why.clone() },
                // While QEMU has the job, it has the source open.
                Stage::Local if job.is_none() => HydrationState::Local,
                Stage::Copying | Stage::Local => HydrationState::Copying {
                    done_bytes: job.map_or(0, |job| bytes(job.current_progress)),
                    total_bytes: job.map_or(disk.bytes, |job| bytes(job.total_progress)),
                },
            };
            Some(DiskHydration { disk: disk.number, path: copy.target.path.clone(), state: how_far })
        });
        Ok(all.collect())
    }

    pub(crate) async fn cancel_hydration(
        &self,
        machine: MachineId,
        disk: DiskNumber,
    ) -> Result<(), ComputeError> {
        let lock = self.machines.lock_of(machine);
        let _one_at_a_time = lock.lock().await;
        let directory = self.machines.directory(machine);
        let (mut state, qmp) = match self.observe(&directory).await? {
            Observed::Absent | Observed::HalfMade => return Ok(()),
            Observed::Off(state) => (state, None),
            Observed::Live(live) => (live.state, Some(live.qmp)),
        };
        match (state.copy_of(disk).map(|copy| copy.stage.clone()), qmp) {
            (None, _) => return Ok(()),
            (Some(Stage::Local), _) => {
                let why = "has moved to its local copy, which cannot be undone".into();
                return Err(ComputeError::Hydration { machine, disk, why });
            }
            (Some(Stage::Copying), Some(qmp)) => {
                if find(&qmp.ask(query_jobs {}).await?, disk).is_some() {
                    // A job that just concluded refuses, and is dismissed all the same.
                    let _ = qmp.ask(job_cancel { id: job_of(disk) }).await;
                    until(&qmp, disk, &[JobStatus::concluded]).await?;
                }
                discard(&qmp, &state, disk).await?;
            }
            (Some(_), _) => {}
        }
        state.copies.retain(|copy| copy.disk != disk);
        directory.store(&state)
    }
}

/// Makes the file, opens it in QEMU and begins to copy.
async fn begin(qmp: &Qmp, disk: &MachineDisk, target: &HydrationTarget) -> Result<(), ComputeError> {
    let path = &target.path;
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(ComputeError::io("create", path))?;
    let (node, file_node) = (copy_node(disk.number), copy_file_node(disk.number));
    if target.format == DiskFormat::Raw {
        file.set_len(disk.bytes).map_err(ComputeError::io("enlarge", path))?;
    }
    // Zeroes are not stored: unmapping lets QEMU make a disk's empty parts without writing them.
    let open_file = json!({ "driver": "file", "node-name": file_node, "filename": path, "discard": "unmap" });
    qmp.ask(BlockdevAdd(open_file)).await?;
    let driver = match target.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => {
            let options = json!({ "driver": "qcow2", "file": file_node, "size": disk.bytes });
            qmp.ask(BlockdevCreate { job_id: job_of(disk.number), options }).await?;
            until(qmp, disk.number, &[JobStatus::concluded]).await?;
            let error = find(&qmp.ask(query_jobs {}).await?, disk.number).and_then(|job| job.error.clone());
            qmp.ask(job_dismiss { id: job_of(disk.number) }).await?;
            if let Some(why) = error {
                return Err(ComputeError::io("make", path)(io::Error::other(why)));
            }
            "qcow2"
        }
    };
    let open = json!({ "driver": driver, "node-name": node, "file": file_node, "discard": "unmap" });
    qmp.ask(BlockdevAdd(open)).await?;
    let mirror = blockdev_mirror {
        job_id: Some(job_of(disk.number)),
        device: source_node(disk.number),
        target: node,
        sync: MirrorSyncMode::full,
        speed: Some(speed(target)),
        // What the guest writes meanwhile is copied afterwards. The other mode, in which each write waits for the
        // copy too, ends sooner under a guest that never stops writing; but QEMU 7.2 in that mode now and then
        // corrupts its memory, and takes the guest with it, when the copy's file system is full.
        copy_mode: Some(MirrorCopyMode::background),
        auto_finalize: Some(false),
        auto_dismiss: Some(false),
        on_source_error: Some(BlockdevOnError::report),
        on_target_error: Some(BlockdevOnError::report),
        buf_size: None,
        filter_node_name: None,
        granularity: None,
        replaces: None,
    };
    qmp.ask(mirror).await.map(drop)
}

/// Brings every copy as far as it can go now. Whether there is more to do later.
async fn advance(directory: &MachineDirectory, live: &mut Live) -> Result<bool, ComputeError> {
    let mut more = false;
    let copies = live.state.copies.clone();
    for copy in copies.iter().filter(|copy| !matches!(copy.stage, Stage::Failed { .. })) {
        more |= advance_one(directory, live, copy).await?;
    }
    Ok(more)
}

async fn advance_one(
    directory: &MachineDirectory,
    live: &mut Live,
    copy: &LocalCopy,
) -> Result<bool, ComputeError> {
    let disk = copy.disk;
    let mut jobs = live.qmp.ask(query_jobs {}).await?;
    if find(&jobs, disk).is_some_and(|job| job.status == JobStatus::ready) {
        live.qmp.ask(job_complete { id: job_of(disk) }).await?;
        until(&live.qmp, disk, &[JobStatus::pending, JobStatus::concluded]).await?;
        jobs = live.qmp.ask(query_jobs {}).await?;
    }
    let job = find(&jobs, disk);
    match (job.map(|job| job.status), &copy.stage) {
        (Some(JobStatus::pending), _) => {
            set_stage(&mut live.state, disk, Stage::Local);
            directory.store(&live.state)?;
            live.qmp.ask(job_finalize { id: job_of(disk) }).await?;
            until(&live.qmp, disk, &[JobStatus::concluded]).await?;
            let jobs = live.qmp.ask(query_jobs {}).await?;
            if let Some(why) = find(&jobs, disk).and_then(|job| job.error.clone()) {
                return fail(directory, live, disk, why).await;
            }
            tracing::info!(machine = %directory.machine, %disk, path = %copy.target.path.display(), "a disk moved to its local copy");
            let_go_of_source(live, disk).await
        }
        (Some(JobStatus::concluded), Stage::Local) if job.is_some_and(|job| job.error.is_none()) => {
            let_go_of_source(live, disk).await
        }
        (Some(JobStatus::concluded), _) => {
            let why = job.and_then(|job| job.error.clone());
            let why = why.unwrap_or_else(|| "it was ended through the process's socket".into());
            fail(directory, live, disk, why).await
        }
        (None, Stage::Copying) => fail(directory, live, disk, "its beginning was cut short".into()).await,
        (None, _) => Ok(false),
        (Some(_), _) => Ok(true),
    }
}

/// Closes the source of a disk that moved. Whether there is more to do later.
///
/// QEMU stands still while it closes the connection to a server that is gone, so that waits until the server
/// is there. The job is dismissed last: while QEMU has it, the source is not let go.
async fn let_go_of_source(live: &Live, disk: DiskNumber) -> Result<bool, ComputeError> {
    let source = live.state.spec.disks.iter().find(|known| known.number == disk).map(|known| &known.source);
    if let Some(DiskAddress::NbdUnix { socket, .. }) = source
        && UnixStream::connect(socket).await.is_err()
    {
        return Ok(true);
    }
    close_node(&live.qmp, source_node(disk)).await?;
    live.qmp.ask(job_dismiss { id: job_of(disk) }).await?;
    Ok(false)
}

/// Gives a copy up; the guest goes on with the source.
async fn fail(
    directory: &MachineDirectory,
    live: &mut Live,
    disk: DiskNumber,
    why: String,
) -> Result<bool, ComputeError> {
    tracing::warn!(machine = %directory.machine, %disk, %why, "a disk could not be copied");
    discard(&live.qmp, &live.state, disk).await?;
    set_stage(&mut live.state, disk, Stage::Failed { why });
    directory.store(&live.state)?;
    Ok(false)
}

/// Removes what QEMU still has of a copy that ended, and its file.
async fn discard(qmp: &Qmp, state: &MachineState, disk: DiskNumber) -> Result<(), ComputeError> {
    if find(&qmp.ask(query_jobs {}).await?, disk).is_some() {
        qmp.ask(job_dismiss { id: job_of(disk) }).await?;
    }
    close_nodes(qmp, disk).await?;
    state.copy_of(disk).map_or(Ok(()), |copy| remove_file(&copy.target.path))
}

async fn close_nodes(qmp: &Qmp, disk: DiskNumber) -> Result<(), ComputeError> {
    close_node(qmp, copy_node(disk)).await?;
    close_node(qmp, copy_file_node(disk)).await
}

async fn close_node(qmp: &Qmp, node_name: String) -> Result<(), ComputeError> {
    match qmp.ask(blockdev_del { node_name }).await {
        // It was not opened yet, or is closed already.
        Err(ComputeError::Refused { why, .. }) if why.contains("Failed to find node") => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Waits until the disk's job is in one of these states.
async fn until(qmp: &Qmp, disk: DiskNumber, states: &[JobStatus]) -> Result<(), ComputeError> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        let jobs = qmp.ask(query_jobs {}).await?;
        if find(&jobs, disk).is_none_or(|job| states.contains(&job.status)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(qmp.silent("the end of copying a disk", ANSWER_LIMIT));
        }
        tokio::time::sleep(LOOK_AGAIN_SOON).await;
    }
}

/// Removes the files of all copies.
pub(crate) fn remove_copies(copies: &[LocalCopy]) -> Result<(), ComputeError> {
    copies
        .iter()
        .filter(|copy| !matches!(copy.stage, Stage::Failed { .. }))
        .try_for_each(|copy| remove_file(&copy.target.path))
}

/// The machine is off: copies that are not complete are worth nothing.
pub(crate) fn give_up(copies: &mut [LocalCopy]) -> Result<(), ComputeError> {
    for copy in copies.iter_mut().filter(|copy| copy.stage == Stage::Copying) {
        remove_file(&copy.target.path)?;
        copy.stage = Stage::Failed { why: "the machine went off before all was copied".into() };
    }
    Ok(())
}

pub(crate) fn remove_file(path: &Path) -> Result<(), ComputeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ComputeError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

pub(crate) fn set_stage(state: &mut MachineState, disk: DiskNumber, stage: Stage) {
    if let Some(copy) = state.copies.iter_mut().find(|copy| copy.disk == disk) {
        copy.stage = stage;
    }
}

fn find(jobs: &[JobInfo], disk: DiskNumber) -> Option<&JobInfo> {
    let id = job_of(disk);
    jobs.iter().find(|job| job.id == id)
}

fn job_of(disk: DiskNumber) -> String {
    format!("copy-disk{disk}")
}

fn copy_node(disk: DiskNumber) -> String {
    format!("disk{disk}-copy")
}

fn copy_file_node(disk: DiskNumber) -> String {
    format!("disk{disk}-copy-file")
}

fn speed(target: &HydrationTarget) -> i64 {
    // Zero is no limit.
    target.bytes_per_second.map_or(0, |speed| i64::try_from(speed).unwrap_or(i64::MAX).max(1))
}

/// `blockdev-add` with options as they stand on a command line: the crate's type knows every driver there is.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct BlockdevAdd(Value);

impl qapi::Command for BlockdevAdd {
    const NAME: &'static str = "blockdev-add";
    const ALLOW_OOB: bool = false;
    type Ok = qapi::Empty;
}

impl qapi::qmp::QmpCommand for BlockdevAdd {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct BlockdevCreate {
    job_id: String,
    options: Value,
}

impl qapi::Command for BlockdevCreate {
    const NAME: &'static str = "blockdev-create";
    const ALLOW_OOB: bool = false;
    type Ok = qapi::Empty;
}

impl qapi::qmp::QmpCommand for BlockdevCreate {}
