//! The disks of a machine that took over are copied to this site, and it goes on with them.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_api::{Job, JobKind, JobState, MachineState};
use lifeboat_compute::{DiskFormat, HydrationState, LibvirtProvider, LibvirtSettings};
use lifeboat_vault::jobs::{Hydration, JobRequest, Jobs, Step};
use lifeboat_wire::event::Severity;
use tempfile::TempDir;

use crate::site::{Site, drill, failover};
use crate::support::SERVER;

fn hydrate(format: DiskFormat, bytes_per_second: Option<u64>) -> JobRequest {
    JobRequest::Hydrate { format, bytes_per_second }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_goes_on_with_copies_of_its_disks_also_after_the_vault_was_restarted() {
    let site = Site::new().await;
    let refused = async |site: &Site, request| site.begin(request).await.unwrap_err().to_string();
    assert!(refused(&site, hydrate(DiskFormat::Raw, None)).await.contains("nothing to copy"));
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);

    // One that would take for ever is cancelled, and the machine goes on as before.
    let slow = site.begin(hydrate(DiskFormat::Raw, Some(1))).await.unwrap();
    site.until_step(&slow, Step::CopyDisks).await;
    assert!(refused(&site, JobRequest::Commit).await.contains("copying of a machine's disks"));
    site.jobs.cancel(slow.id).await.unwrap();
    assert_eq!(site.end_of(&slow).await.state, JobState::Cancelled);
    let machine = site.jobs.machine(SERVER).await.unwrap();
    assert_eq!(machine.state, MachineState::Running);
    assert_eq!(site.volumes.list().await.unwrap().len(), 1);

    let job = site.run(hydrate(DiskFormat::Qcow2, None)).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert_eq!(site.volumes.list().await.unwrap(), []);
    let copies = site.provider.hydration(machine.id).await.unwrap();
    assert!(copies.iter().all(|copy| copy.state == HydrationState::Local), "{copies:?}");
    assert!(copies.iter().all(|copy| copy.path.exists()), "{copies:?}");
    let shown = site.jobs.machine(SERVER).await.unwrap();
    assert_eq!(shown.volume, None, "it is closed");
    let paths =
        |files: &[lifeboat_api::DiskFile]| files.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&shown.disk_files), copies.iter().map(|copy| copy.path.clone()).collect::<Vec<_>>());
    assert_eq!(site.run(JobRequest::Commit).await.state, JobState::Done);

    // Nothing of the vault's volumes is needed any more: it boots again from its copies.
    let site = site.restart(Arc::new(())).await;
    site.provider.power_off(machine.id).await.unwrap();
    site.jobs.resume().await.unwrap();
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Running);
    site.until_console("second login: ", 2).await;
    site.end().await;
}

/// Copies by themselves, so slowly that they do not end before something else happens.
const SLOWLY: Hydration = Hydration { format: DiskFormat::Raw, bytes_per_second: Some(1) };
const FAST: Hydration = Hydration { format: DiskFormat::Qcow2, bytes_per_second: None };

/// The job that follows one that is done.
async fn next(site: &Site, job: &Job) -> Job {
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    let next = site.jobs.job(job.next.unwrap_or_else(|| panic!("{job:#?}"))).await.unwrap();
    assert_eq!(next.kind, JobKind::Hydrate, "{next:#?}");
    assert!(job.message.as_ref().unwrap().contains(&next.id.to_string()), "{job:#?}");
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copying_begins_by_itself_after_a_commit_and_goes_on_after_the_vault_was_restarted() {
    let site = Site::new().await;
    site.jobs.set_hydration(Some(SLOWLY));
    let job = site.run(failover("latest-processed")).await;
    assert_eq!((job.state, job.next), (JobState::Done, None), "nothing is copied before: {job:#?}");
    let job = site.run(JobRequest::Commit).await;
    let copying = next(&site, &job).await;
    site.until_step(&copying, Step::CopyDisks).await;

    // The vault ends, and the next one has been told to be faster, which is for later commits.
    let site = site.restart(Arc::new(())).await;
    site.jobs.set_hydration(Some(FAST));
    site.jobs.resume().await.unwrap();
    let refused = site.begin(JobRequest::Commit).await.unwrap_err().to_string();
    assert!(refused.contains(&copying.id.to_string()), "{refused}");
    site.jobs.cancel(copying.id).await.unwrap();
    assert_eq!(site.end_of(&copying).await.state, JobState::Cancelled);
    assert_eq!(site.volumes.list().await.unwrap().len(), 1);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copying_begins_although_the_vault_stopped_as_the_commit_ended() {
    let site = Site::new().await;
    site.jobs.set_hydration(Some(FAST));
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    // At whatever moment it is stopped: the commit is done later, or what follows it is begun later.
    let commit = site.begin(JobRequest::Commit).await.unwrap();
    let site = site.restart(Arc::new(())).await;
    site.jobs.set_hydration(Some(FAST));
    // The host of both was restarted: the machine is started again before its disks are copied.
    site.provider.power_off(site.jobs.machine(SERVER).await.unwrap().id).await.unwrap();
    site.jobs.resume().await.unwrap();
    let commit = site.end_of(&commit).await;
    let copying = next(&site, &commit).await;
    let copying = site.end_of(&copying).await;
    assert_eq!(copying.state, JobState::Done, "{copying:#?}");
    assert_eq!(site.volumes.list().await.unwrap(), []);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_says_when_nothing_is_copied() {
    // Settings say so.
    let site = Site::new().await;
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    let job = site.run(JobRequest::Commit).await;
    assert_eq!((job.state, job.next), (JobState::Done, None), "{job:#?}");
    assert!(job.message.as_ref().unwrap().contains("lifeboat machine hydrate db1"), "{job:#?}");
    assert_eq!(site.provider.hydration(site.jobs.machine(SERVER).await.unwrap().id).await.unwrap(), []);
    site.end().await;

    // It was copied before.
    let site = Site::new().await;
    site.jobs.set_hydration(Some(FAST));
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    assert_eq!(site.run(hydrate(DiskFormat::Raw, None)).await.state, JobState::Done);
    let job = site.run(JobRequest::Commit).await;
    assert_eq!((job.state, job.next), (JobState::Done, None), "{job:#?}");
    assert!(job.message.as_ref().unwrap().contains("copies of its disks at this site already"), "{job:#?}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_on_another_host_are_committed_and_not_copied_without_an_alarm() {
    let site = Site::new().await;
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    let before = alarms(&site).await;
    // What a job of a machine on another host would ask: whether disks are copied there.
    let uri = "qemu+ssh://root@host.invalid/system";
    let settings = LibvirtSettings::new(site.dir.path().join("elsewhere"), uri, site.vault.id());
    let elsewhere = Arc::new(LibvirtProvider::open(settings).await.unwrap());
    let jobs = Jobs::new(Arc::clone(&site.volumes), elsewhere, Timestamp::now, Arc::new(()));
    jobs.set_hydration(Some(FAST));
    let job = jobs.begin(SERVER, JobRequest::Commit).await.unwrap();
    let job = site.end_of(&jobs.view(job).await.unwrap()).await;
    assert_eq!((job.state, job.next), (JobState::Done, None), "{job:#?}");
    let message = job.message.unwrap();
    assert!(message.contains("host.invalid") && message.contains("vault's machine only"), "{message}");
    let refused = jobs.begin(SERVER, hydrate(DiskFormat::Raw, None)).await.unwrap_err().to_string();
    assert!(refused.contains("host.invalid") && refused.contains("vault's machine only"), "{refused}");
    assert_eq!(alarms(&site).await, before);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_little_room_is_an_event_and_the_machine_runs_on_until_there_is_some() {
    let dir = tempfile::Builder::new().prefix("lb").tempdir().unwrap();
    let room = Room::mount("64M");
    std::os::unix::fs::symlink(room.0.path(), dir.path().join("machines")).unwrap();
    let site = Site::made_in(dir, Arc::new(()), None).await;
    site.jobs.set_hydration(Some(FAST));
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    let job = site.run(JobRequest::Commit).await;
    let copying = next(&site, &job).await;
    let copying = site.end_of(&copying).await;
    assert_eq!(copying.state, JobState::Failed, "{copying:#?}");
    let retry = format!("lifeboat job retry {}", copying.id);
    let message = copying.message.as_ref().unwrap();
    assert!(message.contains("MiB to copy, and") && message.contains("MiB free"), "{message}");
    assert!(message.contains(&retry), "{message}");
    assert!(
        message.contains(&format!("machines/{}", site.jobs.machine(SERVER).await.unwrap().id)),
        "{message}"
    );
    let alarms = alarms(&site).await;
    assert!(
        alarms.iter().any(|alarm| alarm.starts_with("hydrate_failed") && alarm.contains(&retry)),
        "{alarms:?}"
    );
    let machine = site.jobs.machine(SERVER).await.unwrap();
    assert_eq!(machine.state, MachineState::Running);
    assert!(machine.committed.is_some());
    assert_eq!(site.provider.hydration(machine.id).await.unwrap(), []);
    assert_eq!(site.volumes.list().await.unwrap().len(), 1);

    room.resize("1G");
    site.jobs.retry(copying.id).await.unwrap();
    let copying = site.end_of(&copying).await;
    assert_eq!(copying.state, JobState::Done, "{copying:#?}");
    assert_eq!(site.volumes.list().await.unwrap(), []);
    site.end().await;
}

/// Codes, texts and next steps of the events that somebody should see.
async fn alarms(site: &Site) -> Vec<String> {
    let alarms = site.vault.catalog().events(Severity::Warning, None, 10).await.unwrap();
    alarms.into_iter().map(|event| format!("{}: {} {}", event.code, event.message, event.next_step)).collect()
}

/// A file system of its own, that goes when this does.
struct Room(TempDir);

impl Room {
    fn mount(size: &str) -> Self {
        let at = tempfile::tempdir().unwrap();
        mount(&format!("size={size}"), at.path());
        Self(at)
    }

    fn resize(&self, size: &str) {
        mount(&format!("remount,size={size}"), self.0.path());
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Lazily: a machine of a test that failed may still work there.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

fn mount(options: &str, at: &Path) {
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at);
    assert!(mount.status().unwrap().success(), "{mount:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_is_not_copied() {
    let site = Site::new().await;
    assert_eq!(site.run(drill(true)).await.state, JobState::Done);
    let error = site.begin(hydrate(DiskFormat::Raw, None)).await.unwrap_err().to_string();
    assert!(error.contains("has not failed over"), "{error}");
    site.end().await;
}
