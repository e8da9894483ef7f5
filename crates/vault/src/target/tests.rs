#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use jiff::Timestamp;
use lifeboat_compute::{Forward, NicModel};
use lifeboat_wire::facts::{Address, DRIVERS, OperatingSystem};

use super::*;

pub(crate) const SERVER: ServerId = ServerId::new(7);

/// A Debian server with BIOS, everything known and nothing to say.
pub(crate) fn facts() -> ServerFacts {
    let disk = facts::DiskFacts {
        name: "sda".into(),
        path: Some("/dev/sda".into()),
        bytes: 8 << 30,
        boot_code: Fact::Known(facts::BootCode::Grub),
        partitions: Fact::Known(None),
    };
    let root = facts::FileSystem {
        mount_point: "/".into(),
        kind: "ext4".into(),
        source: "/dev/sda1".into(),
        needed: true,
        disks: vec!["sda".into()],
        unprotected: Vec::new(),
        layers: Vec::new(),
        network: false,
    };
    ServerFacts {
        time: Timestamp::UNIX_EPOCH,
        os: Fact::Known(OperatingSystem { name: "Debian 12".into(), id: "debian".into(), like: Vec::new() }),
        kernel: "6.1.0-28-amd64".into(),
        architecture: "x86_64".into(),
        kernel_command_line: Fact::Known("root=/dev/sda1 ro console=tty0 console=ttyS0,115200".into()),
        firmware: Fact::Known(facts::Firmware::Bios),
        cpus: Fact::Known(4),
        memory_bytes: Fact::Known(4 << 30),
        boot_ms: Fact::Known(20_000),
        disks: vec![disk],
        file_systems: Fact::Known(vec![root]),
        drivers: DRIVERS.map(|driver| (driver.to_owned(), Fact::Known(DriverPlace::Initramfs))).into(),
        interfaces: Fact::Known(vec![interface("enp0s2", "52:54:00:00:00:01", None)]),
        fits_copies: true,
    }
}

pub(crate) fn interface(name: &str, mac: &str, address: Option<(&str, u8)>) -> Interface {
    let address =
        address.map(|(text, prefix)| Address { address: text.parse().unwrap(), prefix, fixed: true });
    Interface {
        name: name.into(),
        mac: mac.into(),
        part_of: None,
        addresses: address.into_iter().collect(),
        gateway: None,
        configured_by: None,
        named: false,
    }
}

pub(crate) fn host() -> Capabilities {
    Capabilities {
        acceleration: Acceleration::Kvm,
        firmwares: vec![lifeboat_compute::Firmware::Bios, lifeboat_compute::Firmware::Uefi],
        version: "QEMU 7.2".into(),
        cpus: 8,
        memory_mib_free: 16 << 10,
    }
}

fn derived(set: &TargetSettings, facts: &ServerFacts, host: &Capabilities) -> Derived {
    derive(SERVER, set, Some(facts), Some(host), MachinePurpose::Failover)
}

fn place(facts: &mut ServerFacts, drivers: &[&str], place: DriverPlace) {
    for driver in drivers {
        facts.drivers.insert((*driver).to_owned(), Fact::Known(place));
    }
}

#[test]
fn a_machine_is_as_its_source_unless_something_else_was_set() {
    let all = derived(&TargetSettings::default(), &facts(), &host());
    assert_eq!((all.target.cpus, all.target.memory_mib), (4, 4096));
    assert_eq!(all.target.mac.as_deref(), Some("52:54:00:00:00:01"));
    assert_eq!(all.target.derived.len(), 7);
    assert!(all.less.is_empty());
    let set = TargetSettings { cpus: Some(1), firmware: Some(Firmware::Uefi), ..TargetSettings::default() };
    let target = derived(&set, &facts(), &host()).target;
    assert_eq!((target.cpus, target.firmware), (1, Firmware::Uefi));
    assert!(!target.derived.contains_key("cpus") && !target.derived.contains_key("firmware"));
    assert_eq!(TargetSettings::from(target), set, "what was set can be told from what was derived");
}

#[test]
fn a_machine_is_cut_to_what_its_host_has_and_that_is_said() {
    let small = Capabilities { cpus: 2, memory_mib_free: 3000, ..host() };
    let cut = derived(&TargetSettings::default(), &facts(), &small);
    assert_eq!((cut.target.cpus, cut.target.memory_mib), (2, 2688));
    assert_eq!(cut.less, ["2 processors instead of 4", "2688 MiB of memory instead of 4096 MiB"]);
    assert!(cut.target.derived["memory_mib"].contains("3000 MiB free"));
    let drill =
        derive(SERVER, &TargetSettings::default(), Some(&facts()), Some(&small), MachinePurpose::Drill);
    assert_eq!(drill.target.memory_mib, 1472);
}

#[test]
fn without_facts_a_machine_is_the_usual_one() {
    let target =
        derive(SERVER, &TargetSettings::default(), None, Some(&host()), MachinePurpose::Drill).target;
    let usual = Target::default();
    assert_eq!(
        (target.cpus, target.memory_mib, target.firmware),
        (usual.cpus, usual.memory_mib, usual.firmware)
    );
    assert_eq!(target.mac, Some(MacAddress::local(7).to_string()));
    assert!(target.derived["cpus"].contains("not known"));
}

#[test]
fn disks_are_attached_by_what_the_initramfs_can_drive() {
    let bus = |facts: &ServerFacts| derived(&TargetSettings::default(), facts, &host()).target.disk_bus;
    let mut facts = facts();
    assert_eq!(bus(&facts), DiskBus::Virtio);
    place(&mut facts, &["virtio_blk"], DriverPlace::RootFileSystem);
    assert_eq!(bus(&facts), DiskBus::Sata);
    place(&mut facts, &["ahci"], DriverPlace::Absent);
    assert_eq!(bus(&facts), DiskBus::Nvme);
    place(&mut facts, &["nvme"], DriverPlace::BuiltIn);
    assert_eq!(bus(&facts), DiskBus::Nvme);
    facts.drivers.insert("virtio_blk".into(), Fact::Unknown("unread".into()));
    assert_eq!(bus(&facts), DiskBus::Nvme, "one that is known to work comes before one that may");
    place(&mut facts, &["nvme"], DriverPlace::RootFileSystem);
    assert_eq!(bus(&facts), DiskBus::Virtio);
}

#[test]
fn a_network_card_may_have_its_driver_on_the_root_file_system() {
    let card = |facts: &ServerFacts| derived(&TargetSettings::default(), facts, &host()).target.network_card;
    let mut facts = facts();
    place(&mut facts, &["virtio_net", "virtio_pci"], DriverPlace::RootFileSystem);
    assert_eq!(card(&facts), NetworkCard::Virtio);
    place(&mut facts, &["virtio_net"], DriverPlace::Absent);
    assert_eq!(card(&facts), NetworkCard::E1000e);
}

#[test]
fn emulation_gets_more_time_to_start() {
    let slow = Capabilities { acceleration: Acceleration::Tcg { why_not_kvm: String::new() }, ..host() };
    let within = |host: &Capabilities, boot_ms| {
        let facts = ServerFacts { boot_ms: Fact::Known(boot_ms), ..facts() };
        derived(&TargetSettings::default(), &facts, host).target.up_within
    };
    assert_eq!(within(&host(), 60_000), Span::seconds(600));
    assert_eq!(within(&slow, 60_000), Span::seconds(1200));
    assert_eq!(within(&slow, u64::MAX), Span::seconds(86_400));
}

#[test]
fn an_isolated_network_has_the_sources_addresses() {
    let subnet = |address, prefix, gateway: Option<&str>| {
        let mut one = interface("eno1", "52:54:00:00:00:01", Some((address, prefix)));
        one.gateway = gateway.map(|gateway| gateway.parse().unwrap());
        subnet_of(&one).map(|of| format!("{}/{} {} {}", of.network, of.prefix, of.gateway, of.guest))
    };
    let told = |text: &str| Some(text.to_owned());
    assert_eq!(subnet("192.0.2.7", 24, Some("192.0.2.254")), told("192.0.2.0/24 192.0.2.254 192.0.2.7"));
    assert_eq!(subnet("10.3.0.1", 16, None), told("10.3.0.0/16 10.3.0.2 10.3.0.1"));
    assert_eq!(subnet("10.3.0.9", 16, Some("10.9.0.1")), told("10.3.0.0/16 10.3.0.1 10.3.0.9"));
    for (address, prefix) in
        [("192.0.2.7", 32), ("192.0.2.7", 30), ("192.0.2.0", 24), ("169.254.3.4", 16), ("fd00::7", 64)]
    {
        assert_eq!(subnet(address, prefix, None), None, "{address}/{prefix}");
    }
}

#[test]
fn each_card_of_the_source_is_a_card_of_the_machine_and_one_is_reached() {
    let mut second = interface("eno2", "52:54:00:00:00:02", Some(("192.0.2.7", 24)));
    second.gateway = Some("192.0.2.1".parse().unwrap());
    let all = vec![
        interface("eno1", "52:54:00:00:00:01", Some(("10.0.0.7", 24))),
        second,
        interface("eno3", "52:54:00:00:00:01", None),
        interface("ib0", "01:00:5e:00:00:01", None),
    ];
    let facts = ServerFacts { interfaces: Fact::Known(all), ..facts() };
    let derived = derived(&TargetSettings::default(), &facts, &host());
    let forwards = vec![Forward { host_port: 0, guest_port: 22 }];
    let isolated = Attachment::Isolated { subnet: None, forwards: forwards.clone() };
    let mac = derived.target.mac.as_ref().unwrap().parse().unwrap();
    let (nics, changes) = nics(&derived, isolated, mac, NicModel::E1000e);
    let guest = |nic: &Nic| match &nic.attachment {
        Attachment::Isolated { subnet, forwards } => (subnet.unwrap().guest.to_string(), forwards.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(nics.iter().map(guest).collect::<Vec<_>>(), [("10.0.0.7".into(), 0), ("192.0.2.7".into(), 1)]);
    assert_eq!(nics[1].mac.to_string(), "52:54:00:00:00:02");
    assert_eq!(derived.target.mac.as_deref(), Some("52:54:00:00:00:02"), "the one with the default route");
    let told: Vec<_> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["lifeboat-card:mac=52-54-00-00-00-01:name=eno1", "lifeboat-card:mac=52-54-00-00-00-02:name=eno2"]
    );

    let bridge = Attachment::Bridge { name: "lan".into(), address: None };
    let (nics, _) = super::nics(&derived, bridge.clone(), mac, NicModel::Virtio);
    assert!(matches!(nics[0].attachment, Attachment::Isolated { .. }) && nics[1].attachment == bridge);
}

#[test]
fn a_fixed_address_is_kept_where_it_fits_and_changed_where_it_does_not() {
    let order = |own: (&str, u8), attachment: Attachment, configured_by| {
        let mut one = interface("eno 1", "52:54:00:00:00:01", Some(own));
        (one.gateway, one.configured_by) = (Some("10.5.0.1".parse().unwrap()), configured_by);
        let facts = ServerFacts { interfaces: Fact::Known(vec![one]), ..facts() };
        let derived = derived(&TargetSettings::default(), &facts, &host());
        assert_eq!(derived.changes_address, configured_by.is_some());
        let mac = "52:54:00:00:00:01".parse().unwrap();
        let (nics, changes) = nics(&derived, attachment, mac, NicModel::Virtio);
        assert!(changes.iter().all(|change| change.name.is_none()), "a name that no configuration can mean");
        let change = changes.into_iter().next().and_then(|change| change.address);
        let told = change.map(|AddressChange { from, to, prefix, gateway }| {
            let gateway = gateway.map(|(from, to)| format!(" via {to}, not {from}")).unwrap_or_default();
            format!("{from} to {to}/{prefix}{gateway}")
        });
        (nics.into_iter().next().unwrap().attachment, told)
    };
    let shared = |address: &str, gateway: &str| Attachment::Shared {
        network: lifeboat_compute::SharedNetwork {
            id: lifeboat_model::NetworkId::new(1),
            name: "lab".into(),
            subnet: "10.5.0.0/24".parse().unwrap(),
            gateway: gateway.parse().unwrap(),
            dhcp: false,
            outward: false,
        },
        address: Some(address.parse().unwrap()),
    };
    let bridge = |address: [u8; 4]| Attachment::Bridge { name: "lan".into(), address: Some(address.into()) };
    let own = || Attachment::Isolated { subnet: None, forwards: Vec::new() };
    let by = Some(facts::NetworkConfiguration::Ifupdown);
    let told = |own, attachment| order(own, attachment, by).1;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(told(("10.5.0.7", 24), shared("10.5.0.7", "10.5.0.1")), None);
    assert_eq!(told(("10.5.0.7", 24), shared("10.5.0.8", "10.5.0.1")), some("10.5.0.7 to 10.5.0.8/24"));
    assert_eq!(
        told(("10.5.0.7", 16), shared("10.5.0.7", "10.5.0.9")),
        some("10.5.0.7 to 10.5.0.7/24 via 10.5.0.9, not 10.5.0.1"),
        "the address fits, and its gateway is another one there"
    );
    assert_eq!(told(("10.5.0.7", 16), bridge([10, 5, 0, 7])), None, "what is behind a bridge is not known");
    assert_eq!(told(("10.5.0.7", 16), bridge([10, 5, 0, 8])), some("10.5.0.7 to 10.5.0.8/16"));
    assert_eq!(told(("10.5.0.7", 24), own()), None);
    let (attachment, change) = order(("10.5.0.7", 32), own(), by);
    assert_eq!(change, some("10.5.0.7 to 10.0.2.15/24 via 10.0.2.2, not 10.5.0.1"));
    let Attachment::Isolated { subnet: Some(subnet), .. } = attachment else { panic!("{attachment:?}") };
    assert_eq!((subnet.guest, subnet.gateway), ([10, 0, 2, 15].into(), [10, 0, 2, 2].into()));
    assert_eq!(order(("10.5.0.7", 32), own(), None).1, None, "nobody knows where it is configured");
}
