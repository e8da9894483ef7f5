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
    site.provider().start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("from afar")).await;
    site.provider().remove(spec.id).await.unwrap();
}

#[tokio::test]
async fn a_guest_waits_for_a_server_that_is_gone_for_a_while() {
    for bus in [lifeboat_compute::DiskBus::Virtio, lifeboat_compute::DiskBus::Sata] {
        let mut site = Site::new().await;
        let image = site.image(COUNTS, "");
        let server = Server::start(site.place.path()).await;
        let mut spec = spec(1, address(site.place.path()));
        spec.disks[0].bus = bus;
        site.provider().start(&spec).await.unwrap();
        site.hears(spec.id, |said| last_number(said) > 20).await;
        drop(server);
        let halted = wait_for(async || match site.provider().status(spec.id).await.unwrap() {
            MachineStatus::Running { halted, .. } => halted,
            status => panic!("{status:?}"),
        });
        let halted = halted.await.expect("the guest goes on without its disk");
        assert!(halted.contains("one of its disks gives no answer"), "{halted}");
        let said = site.said(spec.id).await;

        // The server comes back while no provider is there; the next one lets the guest go on.
        let place = site.place.path().to_owned();
        site.replace_provider(|| ()).await;
        let _server = Server::start(&place).await;
        let more = site.hears(spec.id, |more| last_number(more) > last_number(&said) + 20).await;
        assert!(!more.contains("FAILED"), "the guest got an error");
        site.provider().power_off(spec.id).await.unwrap();
        let more = site.said(spec.id).await;
        let image = std::fs::read(image).unwrap();
        let written = std::str::from_utf8(&image[1024..1032]).unwrap();
        assert!(number(written).unwrap() >= last_number(&more), "a write that was confirmed is lost");
        site.provider().remove(spec.id).await.unwrap();
        site.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_machine_without_its_server_can_still_be_removed() {
    let site = Site::new().await;
    site.image(COUNTS, "");
    let server = Server::start(site.place.path()).await;
    let spec = spec(1, address(site.place.path()));
    site.provider().start(&spec).await.unwrap();
    site.hears(spec.id, |said| last_number(said) > 2).await;
    drop(server);
    site.provider().remove(spec.id).await.unwrap();
    site.assert_nothing_left();
}
