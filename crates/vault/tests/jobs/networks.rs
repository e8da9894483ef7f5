//! Machines in networks: which one they join, what is refused, and that nothing stays.

use jiff::Timestamp;
use lifeboat_api::{CreateNetwork, Firmware, JobState, NetworkKind, NetworkMapping, TargetSettings};
use lifeboat_model::ServerId;
use lifeboat_vault::jobs::{JobError, JobRequest, MachineLimits};
use lifeboat_wire::facts::{Fact, ServerFacts};

use crate::site::{Once, Site, drill, failover, target};
use crate::support::SERVER;

const OTHER: ServerId = ServerId::new(0xbbbb_0000_0000_0003);

fn isolated(name: &str, subnet: &str) -> CreateNetwork {
    CreateNetwork {
        name: name.to_owned(),
        kind: NetworkKind::Isolated,
        bridge: None,
        subnet: Some(subnet.parse().unwrap()),
        gateway: None,
        dhcp: false,
    }
}

fn drill_in(network: &str) -> JobRequest {
    JobRequest::Drill { point: "latest".into(), keep: true, network: Some(network.to_owned()) }
}

impl Site {
    async fn set_address(&self, server: ServerId, address: [u8; 4]) {
        let mut with_address = target("login: ");
        with_address.address = Some(address.into());
        self.jobs.set_target(server, &with_address).await.unwrap();
    }

    async fn run_of(&self, server: ServerId, request: JobRequest) -> lifeboat_api::Job {
        let job = self.jobs.begin(server, request).await.unwrap();
        self.end_of(&self.jobs.view(job).await.unwrap()).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_failover_into_a_network_that_is_not_there_leaves_the_source_alone() {
    let site = Site::new().await;
    let planned = JobRequest::PlannedFailover { network: Some("nowhere".to_owned()) };
    let refused = site.begin(planned).await.unwrap_err().to_string();
    assert!(refused.contains("there is no network \"nowhere\""), "{refused}");
    assert_eq!(site.jobs.list(None, 10).await.unwrap(), []);
    site.assert_nothing_left().await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drills_meet_in_the_network_that_stands_in_for_their_servers() {
    let site = Site::new().await;
    site.second_server(OTHER, "db2").await;
    // However few processors this host has.
    site.jobs.set_limits(MachineLimits { memory_mib: None, cpus: Some(8) });
    site.jobs.create_network(&isolated("lab", "10.5.0.0/24")).await.unwrap();
    let wider =
        NetworkMapping { subnet: "10.0.0.0/8".parse().unwrap(), production: Some("lab".into()), test: None };
    let mapping =
        NetworkMapping { subnet: "10.5.0.0/24".parse().unwrap(), production: None, test: Some("la".into()) };
    for mapping in [&wider, &mapping] {
        site.jobs.map_network(mapping).await.unwrap();
    }
    let mapped = site.jobs.network_mappings().await.unwrap();
    assert_eq!(
        mapped[0].test.as_deref(),
        Some("lab"),
        "the narrower is first, with the whole name: {mapped:?}"
    );

    site.set_address(SERVER, [10, 5, 0, 7]).await;
    site.set_address(OTHER, [10, 5, 0, 7]).await;
    assert_eq!(site.run(drill(true)).await.state, JobState::Done);
    let machine = site.jobs.machine(SERVER).await.unwrap();
    assert_eq!(machine.network.as_deref(), Some("lab"));
    assert_eq!(machine.address, Some([10, 5, 0, 7].into()));
    assert!(machine.forwards.is_empty() && machine.entrance.is_some(), "{machine:?}");

    // One address is one machine's, in one network.
    let refused = site.jobs.begin(OTHER, drill(true)).await.unwrap_err().to_string();
    assert!(refused.contains("db2 would have the address 10.5.0.7 in lab"), "{refused}");
    assert!(refused.contains("which the machine of db1 has"), "{refused}");
    let alone = site.run_of(OTHER, drill_in("own")).await;
    assert_eq!(alone.state, JobState::Done, "{alone:#?}");
    assert_eq!(site.jobs.machine(OTHER).await.unwrap().network, None);
    assert_eq!(site.run_of(OTHER, JobRequest::CleanUp { note: None }).await.state, JobState::Done);

    site.set_address(OTHER, [10, 5, 0, 8]).await;
    assert_eq!(site.run_of(OTHER, drill(true)).await.state, JobState::Done);
    let network = site.jobs.network("lab").await.unwrap();
    let members: Vec<_> = network.machines.iter().map(|member| member.server_name.as_str()).collect();
    assert_eq!(members, ["db1", "db2"]);
    let in_use = site.jobs.delete_network("lab").await.unwrap_err().to_string();
    assert!(
        in_use.contains("the machine of db1, the machine of db2, the mapping of 10.5.0.0/24"),
        "{in_use}"
    );

    for server in [SERVER, OTHER] {
        assert_eq!(site.run_of(server, JobRequest::CleanUp { note: None }).await.state, JobState::Done);
    }
    site.assert_nothing_left().await;
    for mapping in [wider, mapping] {
        let none = NetworkMapping { production: None, test: None, ..mapping };
        site.jobs.map_network(&none).await.unwrap();
    }
    site.jobs.delete_network("lab").await.unwrap();
    assert!(site.jobs.networks().await.unwrap().is_empty());
    site.end().await;
}

/// Facts of a server whose second card is the one by which it is reached, with a fixed address.
fn facts(address: &str) -> ServerFacts {
    let text = include_str!("../../../wire/tests/golden/v1-facts.json");
    let mut facts: ServerFacts = serde_json::from_str(text).unwrap();
    let Fact::Known(interfaces) = &mut facts.interfaces else { panic!("{facts:?}") };
    let mut second = interfaces[0].clone();
    (second.name, second.mac) = ("eno2".into(), "52:54:00:00:00:02".into());
    second.addresses[0].address = address.parse().unwrap();
    (interfaces[0].gateway, interfaces[0].addresses) = (None, Vec::new());
    interfaces.push(second);
    facts.fits_copies = true;
    facts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fixed_address_that_a_network_has_not_becomes_one_that_is_free_there() {
    let site = Site::new().await;
    site.second_server(OTHER, "db2").await;
    site.jobs.set_limits(MachineLimits { memory_mib: None, cpus: Some(8) });
    site.jobs.create_network(&isolated("lab", "10.5.0.0/24")).await.unwrap();
    let bios = TargetSettings { firmware: Some(Firmware::Bios), ..target("login: ") };
    site.jobs.set_target(SERVER, &bios).await.unwrap();

    // The agent of version 1 cannot change it.
    let before = ServerFacts { fits_copies: false, ..facts("192.0.2.7") };
    site.vault.take_facts(SERVER, before, Timestamp::now()).await.unwrap();
    let refused = site.begin(drill_in("lab")).await.unwrap_err().to_string();
    assert!(refused.contains("192.0.2.7, cannot be had in the network lab"), "{refused}");

    site.vault.take_facts(SERVER, facts("192.0.2.7"), Timestamp::now()).await.unwrap();
    site.set_address(OTHER, [10, 5, 0, 2]).await;
    assert_eq!(site.run_of(OTHER, drill_in("lab")).await.state, JobState::Done);
    let request = JobRequest::Failover { point: "latest-processed".into(), network: Some("lab".into()) };
    let job = site.run(request).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    let told: Vec<_> = job.steps.iter().filter_map(|step| step.message.as_deref()).collect();
    assert!(told.iter().any(|told| told.contains("192.0.2.7 becomes 10.5.0.3")), "{told:?}");
    // The lowest that is neither the gateway's nor the other machine's.
    let machine = site.jobs.machine(SERVER).await.unwrap();
    assert_eq!(
        (machine.network.as_deref(), machine.address),
        (Some("lab"), Some([10, 5, 0, 3].into())),
        "{machine:?}"
    );
    let network = site.jobs.network("lab").await.unwrap();
    assert!(
        network.machines.iter().any(|member| member.address == Some([10, 5, 0, 3].into())),
        "{network:?}"
    );
    let ordered = async || {
        let spec = site.vault.catalog().recovery(SERVER).await.unwrap().unwrap().spec;
        spec.changes.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let expected = [
        "lifeboat-card:mac=52-54-00-00-00-01:name=eno1",
        "lifeboat-card:mac=52-54-00-00-00-02:name=eno2:address=192.0.2.7:new-address=10.5.0.3/24:\
         gateway=192.0.2.1:new-gateway=10.5.0.1",
    ];
    assert_eq!(ordered().await, expected);

    // From another point it is the same machine, though a lower address is free now.
    assert_eq!(site.run_of(OTHER, JobRequest::CleanUp { note: None }).await.state, JobState::Done);
    let older = JobRequest::ChangePoint { point: site.points().await[0].to_string() };
    assert_eq!(site.run(older).await.state, JobState::Done);
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().address, Some([10, 5, 0, 3].into()));
    assert_eq!(ordered().await, expected);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_was_set_is_what_a_fixed_one_becomes() {
    let site = Site::new().await;
    site.jobs.create_network(&isolated("lab", "10.5.0.0/29")).await.unwrap();
    let mut set = TargetSettings { firmware: Some(Firmware::Bios), ..target("login: ") };
    set.address = Some([10, 5, 0, 6].into());
    site.jobs.set_target(SERVER, &set).await.unwrap();
    site.vault.take_facts(SERVER, facts("192.0.2.7"), Timestamp::now()).await.unwrap();
    assert_eq!(site.run(drill_in("lab")).await.state, JobState::Done);
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().address, Some([10, 5, 0, 6].into()));
    let spec = site.vault.catalog().recovery(SERVER).await.unwrap().unwrap().spec;
    let change = spec.changes[1].address.unwrap();
    assert_eq!((change.from, change.to, change.prefix), ([192, 0, 2, 7].into(), [10, 5, 0, 6].into(), 29));
    assert_eq!(site.run(JobRequest::CleanUp { note: None }).await.state, JobState::Done);

    // One that fits is kept, and nothing but names is ordered.
    let mut fitting = facts("10.5.0.6");
    let Fact::Known(interfaces) = &mut fitting.interfaces else { panic!("{fitting:?}") };
    interfaces[1].addresses[0].prefix = 29;
    interfaces[1].gateway = Some("10.5.0.1".parse().unwrap());
    site.vault.take_facts(SERVER, fitting, Timestamp::now()).await.unwrap();
    assert_eq!(site.run(drill_in("lab")).await.state, JobState::Done);
    let spec = site.vault.catalog().recovery(SERVER).await.unwrap().unwrap().spec;
    assert!(spec.changes.iter().all(|change| change.address.is_none() && change.name.is_some()), "{spec:?}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_stays_in_its_network_when_its_point_changes() {
    let site = Site::new().await;
    site.jobs.create_network(&isolated("hall", "10.7.0.0/24")).await.unwrap();
    site.jobs.create_network(&isolated("lab", "10.5.0.0/24")).await.unwrap();
    let mut set = target("login: ");
    (set.network, set.test_network) = (Some("hall".into()), Some("lab".into()));
    site.jobs.set_target(SERVER, &set).await.unwrap();
    assert_eq!(site.run(drill(true)).await.state, JobState::Done);
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().network.as_deref(), Some("lab"));
    assert_eq!(site.run(JobRequest::CleanUp { note: None }).await.state, JobState::Done);

    let request = JobRequest::Failover { point: "latest-processed".into(), network: Some("lab".into()) };
    assert_eq!(site.run(request).await.state, JobState::Done);
    assert_eq!(
        site.jobs.machine(SERVER).await.unwrap().network.as_deref(),
        Some("lab"),
        "the command goes first"
    );
    let first = site.points().await[0].to_string();
    assert_eq!(site.run(JobRequest::ChangePoint { point: first }).await.state, JobState::Done);
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().network.as_deref(), Some("lab"));
    let in_use = site.jobs.delete_network("hall").await.unwrap_err().to_string();
    assert!(in_use.contains("the target of db1"), "{in_use}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_cannot_be_joined_is_refused_before_a_job_begins() {
    let site = Site::new().await;
    site.jobs.create_network(&isolated("lab", "10.5.0.0/24")).await.unwrap();
    let refused = async |request| site.begin(request).await.unwrap_err().to_string();
    let unknown = refused(drill_in("hall")).await;
    assert!(unknown.contains("there is no network \"hall\"; there is: lab"), "{unknown}");
    site.set_address(SERVER, [192, 168, 1, 5]).await;
    let foreign = refused(drill_in("lab")).await;
    assert!(
        foreign.contains("192.168.1.5, cannot be had in the network lab, which has 10.5.0.0/24"),
        "{foreign}"
    );
    let mut wrong = target("login: ");
    wrong.test_network = Some("hall".into());
    let error = site.jobs.set_target(SERVER, &wrong).await.unwrap_err().to_string();
    assert!(error.contains("there is no network \"hall\""), "{error}");
    assert!(site.jobs.list(None, 10).await.unwrap().is_empty());

    let create =
        async |network: CreateNetwork| site.jobs.create_network(&network).await.unwrap_err().to_string();
    assert!(create(isolated("lab", "10.6.0.0/24")).await.contains("there is a network lab already"));
    assert!(create(isolated("own", "10.6.0.0/24")).await.contains("neither own nor none"));
    let gateway = Some([10, 7, 0, 1].into());
    let outside = CreateNetwork { gateway, ..isolated("hall", "10.6.0.0/24") };
    assert!(create(outside).await.contains("10.7.0.1 is no address of a host in 10.6.0.0/24"));
    let bridge = CreateNetwork {
        kind: NetworkKind::Bridge,
        dhcp: true,
        subnet: None,
        ..isolated("hall", "10.6.0.0/24")
    };
    assert!(create(bridge).await.contains("leave out subnet, gateway and DHCP"));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_can_be_done_twice_in_a_network() {
    // As after a crash between a step and the note that it is done.
    let once = Once::new(true, |_| Some(JobError::Interrupted));
    let site = Site::with(once).await;
    site.jobs.create_network(&CreateNetwork { dhcp: true, ..isolated("lab", "10.5.0.0/24") }).await.unwrap();
    let job = site.run(drill_in("lab")).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert_eq!(site.jobs.machine(SERVER).await.unwrap().network.as_deref(), Some("lab"));
    assert_eq!(site.run(JobRequest::CleanUp { note: None }).await.state, JobState::Done);
    site.assert_nothing_left().await;
    assert_eq!(site.run(failover("latest-processed")).await.state, JobState::Done);
    site.end().await;
}
