//! The disks of a machine that took over are copied to this site, and it goes on with them.

use lifeboat_api::{JobState, MachineState};
use lifeboat_compute::{DiskFormat, HydrationState};
use lifeboat_vault::jobs::{JobRequest, Step};

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
    assert_eq!(site.run(JobRequest::Commit).await.state, JobState::Done);

    // Nothing of the vault's volumes is needed any more: it boots again from its copies.
    let site = site.restart(std::sync::Arc::new(())).await;
    site.provider.power_off(machine.id).await.unwrap();
    site.jobs.resume().await.unwrap();
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().state, MachineState::Running);
    site.until_console("second login: ", 2).await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_is_not_copied() {
    let site = Site::new().await;
    assert_eq!(site.run(drill(true)).await.state, JobState::Done);
    let error = site.begin(hydrate(DiskFormat::Raw, None)).await.unwrap_err().to_string();
    assert!(error.contains("has not failed over"), "{error}");
    site.end().await;
}
