//! Machines whose disks are served over NBD.

use lifeboat_compute::{MachineStatus, Provider};

use crate::guests::{COUNTS, READS, number};
use crate::machine::{spec, wait_for};
use crate::serving::{Server, address, last_number};
use crate::site::Site;

#[tokio::test]
async fn a_guest_reads_what_the_server_serves() {
    let site = Site::new().await;
    site.image(READS, "from afar\r\n");
    let _server = Server::start(site.place.path()).await;
    let spec = spec(1, address(site.place.path()));
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("from afar")).await;
}

#[tokio::test]
async fn a_guest_waits_for_a_server_that_is_gone_for_a_while() {
    let site = Site::new().await;
    let image = site.image(COUNTS, "");
    let server = Server::start(site.place.path()).await;
    let spec = spec(1, address(site.place.path()));
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| last_number(said) > 20).await;
    drop(server);
    // The guest stands still: nothing more is said while nothing is served.
    let stopped = wait_for(async || {
        let before = site.said(spec.id).await;
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let after = site.said(spec.id).await;
        (before == after).then_some(())
    });
    stopped.await.expect("the guest goes on without its disk");
    let said = site.said(spec.id).await;
    let status = site.provider.status(spec.id).await.unwrap();
    assert!(matches!(status, MachineStatus::Running { halted: None, .. }), "{status:?}");

    let _server = Server::start(site.place.path()).await;
    let more = site.hears(spec.id, |more| last_number(more) > last_number(&said) + 20).await;
    assert!(!more.contains("FAILED"), "the guest got an error");
    site.provider.power_off(spec.id).await.unwrap();
    let image = std::fs::read(image).unwrap();
    let written = std::str::from_utf8(&image[1024..1032]).unwrap();
    assert!(number(written).unwrap() >= last_number(&more), "a write that was confirmed is lost");
}

#[tokio::test]
async fn a_machine_without_its_server_can_still_be_removed() {
    let site = Site::new().await;
    site.image(COUNTS, "");
    let server = Server::start(site.place.path()).await;
    let spec = spec(1, address(site.place.path()));
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| last_number(said) > 2).await;
    drop(server);
    site.provider.remove(spec.id).await.unwrap();
    assert_eq!(crate::site::processes_in(&site.place.path().join("state")), [0; 0]);
}
