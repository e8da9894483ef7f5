//! What an agent has found out about its server makes the machine, and is judged before there is one.

use jiff::Timestamp;
use lifeboat_api::{MachinePurpose, NetworkCard, ReadinessVerdict, TargetSettings};
use lifeboat_compute::Attachment;
use lifeboat_vault::jobs::JobRequest;
use lifeboat_wire::facts::{Fact, ServerFacts};

use crate::site::{Site, drill, target};
use crate::support::SERVER;

/// What an agent of version 1 sent: a server with UEFI, a fixed address, and an initramfs with NVMe alone.
fn facts() -> ServerFacts {
    let text = include_str!("../../../wire/tests/golden/v1-facts.json");
    let mut facts: ServerFacts = serde_json::from_str(text).unwrap();
    facts.drivers.insert("virtio_net".into(), Fact::Known(lifeboat_wire::facts::DriverPlace::Absent));
    facts.drivers.insert("e1000e".into(), Fact::Known(lifeboat_wire::facts::DriverPlace::RootFileSystem));
    facts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_made_of_what_its_agent_has_found_out() {
    let site = Site::new().await;
    site.vault.take_facts(SERVER, facts(), Timestamp::now()).await.unwrap();
    let told = site.vault.server(SERVER, Timestamp::now()).await.unwrap().facts.unwrap();
    assert_eq!(
        told.root.as_deref(),
        Some("ext4 on LVM on RAID on encryption on multipath on device mapper on a file on sda, sdb")
    );
    assert!(
        told.interfaces[0].fixed && told.unknown.iter().any(|why| why.contains("not complete yet")),
        "{told:?}"
    );

    let readiness = site.jobs.readiness(SERVER).await.unwrap();
    assert_eq!(readiness.verdict, ReadinessVerdict::NotReady);
    let codes: Vec<_> = readiness.findings.iter().map(|finding| finding.code.as_str()).collect();
    for code in ["disk_not_protected", "root_encrypted", "fixed_address", "interface_names", "facts_unknown"]
    {
        assert!(codes.contains(&code), "{code} is not among {codes:?}");
    }

    // Its boot sector starts under BIOS; everything else but what the site sets is derived.
    let set = TargetSettings { firmware: Some(lifeboat_api::Firmware::Bios), ..target("login: ") };
    site.jobs.set_target(SERVER, &set).await.unwrap();
    let shown = site.jobs.target_of(SERVER).await.unwrap();
    assert_eq!((shown.cpus, shown.network_card), (1, NetworkCard::E1000e));
    assert_eq!(shown.mac.as_deref(), Some("52:54:00:00:00:01"));
    let derived: Vec<_> = shown.derived.keys().map(String::as_str).collect();
    assert_eq!(derived, ["address", "disk_bus", "mac", "network_card"]);
    assert_eq!(TargetSettings::from(shown), set);

    let job = site.run(drill(true)).await;
    assert_eq!(job.state, lifeboat_api::JobState::Done, "{job:#?}");
    let machine = site.vault.catalog().recovery(SERVER).await.unwrap().unwrap();
    assert_eq!(machine.purpose, MachinePurpose::Drill);
    let nic = &machine.spec.nics[0];
    assert_eq!(nic.mac.to_string(), "52:54:00:00:00:01");
    let Attachment::Isolated { subnet: Some(subnet), forwards } = &nic.attachment else { panic!("{nic:?}") };
    assert_eq!(
        (subnet.network.to_string(), subnet.gateway.to_string(), subnet.guest.to_string()),
        ("192.0.2.0".into(), "192.0.2.1".into(), "192.0.2.7".into())
    );
    assert_eq!(forwards.len(), 1);
    site.run(JobRequest::CleanUp { note: None }).await;
    site.assert_nothing_left().await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_of_a_server_that_has_failed_over_stay_as_they_were() {
    let site = Site::new().await;
    site.vault.take_facts(SERVER, facts(), Timestamp::now()).await.unwrap();
    site.vault.fence(SERVER, Timestamp::now()).await.unwrap();
    let later = ServerFacts { cpus: Fact::Known(99), ..facts() };
    site.vault.take_facts(SERVER, later, Timestamp::now()).await.unwrap();
    let kept = site.vault.catalog().facts(SERVER).await.unwrap().unwrap();
    assert_eq!(kept.facts, facts());
    let unknown = lifeboat_model::ServerId::new(0xdead);
    let error = site.vault.take_facts(unknown, facts(), Timestamp::now()).await.unwrap_err();
    assert_eq!(error.status(), 404);
    site.end().await;
}
