#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use lifeboat_api::{Capture, Policy, Probe, Rpo, TargetSettings};
use lifeboat_model::ReplicationPolicy;
use lifeboat_wire::facts::{self, BootCode, DriverPlace, Fact, Layer, OperatingSystem};

use super::*;
use crate::target::derive;
use crate::target::tests::{SERVER, facts, host, interface};

fn server() -> Server {
    let rpo = Rpo {
        age_ms: 3000,
        capture_ms: 3000,
        queue_ms: 0,
        transfer_ms: 0,
        commit_ms: 0,
        gated_by: "nothing".into(),
    };
    Server {
        id: SERVER,
        name: "db1".into(),
        state: Protection::Protected,
        reason: None,
        capture: Capture { mode: "optimistic".into(), reason: None },
        rpo: Some(rpo),
        newest_point: None,
        points: 1,
        stored_bytes: 0,
        disks: Vec::new(),
        spool_bytes: 0,
        process_server: None,
        heard: None,
        agent_version: None,
        kernel: None,
        policy: Policy::from(ReplicationPolicy::default()),
        agent_memory_bytes: None,
        agent_cpu_ms: None,
        compared_point: None,
        last_drill: None,
        facts: None,
    }
}

/// What is judged, to be changed by each test.
struct Case {
    server: Server,
    facts: Option<ServerFacts>,
    set: TargetSettings,
    host: Result<Capabilities, String>,
    free_bytes: Option<u64>,
    received: i64,
}

impl Case {
    fn new() -> Self {
        Self {
            server: server(),
            facts: Some(facts()),
            set: TargetSettings::default(),
            host: Ok(host()),
            free_bytes: Some(1 << 40),
            received: 1000,
        }
    }

    fn with(change: impl FnOnce(&mut ServerFacts)) -> Self {
        let mut case = Self::new();
        change(case.facts.as_mut().unwrap());
        case
    }

    fn findings(&self) -> Vec<Finding> {
        let host = self.host.as_ref();
        let purpose = lifeboat_api::MachinePurpose::Failover;
        let target = derive(SERVER, &self.set, self.facts.as_ref(), host.ok(), purpose).target;
        let received = Timestamp::from_second(self.received).unwrap();
        let row = self.facts.clone().map(|facts| FactsRow { facts, received });
        judge(&Observed {
            now: Timestamp::from_second(2000).unwrap(),
            server: &self.server,
            facts: row.as_ref(),
            target: &target,
            host: host.map_err(String::as_str),
            free_bytes: self.free_bytes,
        })
    }

    /// The one finding, whether it prevents the start, and its code.
    fn one(&self, code: &str, prevents: bool) -> Finding {
        let findings = self.findings();
        let found: Vec<_> = findings.iter().map(|finding| finding.code.as_str()).collect();
        assert_eq!(found, [code]);
        assert_eq!(findings[0].prevents, prevents, "{:?}", findings[0]);
        findings.into_iter().next().unwrap()
    }
}

fn place(facts: &mut ServerFacts, drivers: &[&str], place: DriverPlace) {
    for driver in drivers {
        facts.drivers.insert((*driver).to_owned(), Fact::Known(place));
    }
}

fn file_system(point: &str, needed: bool, unprotected: &[&str]) -> FileSystem {
    let disks: Vec<_> = unprotected.iter().map(|disk| (*disk).to_owned()).collect();
    FileSystem {
        mount_point: point.into(),
        kind: "xfs".into(),
        source: "/dev/x".into(),
        needed,
        disks: disks.clone(),
        unprotected: disks,
        layers: Vec::new(),
        network: false,
    }
}

fn add_file_system(facts: &mut ServerFacts, added: FileSystem) {
    let Fact::Known(all) = &mut facts.file_systems else { panic!() };
    all.retain(|one| one.mount_point != added.mount_point);
    all.push(added);
}

#[test]
fn a_server_about_which_all_is_well_is_ready() {
    let findings = Case::new().findings();
    assert_eq!(findings, []);
    assert_eq!(verdict(&findings), ReadinessVerdict::Ready);
}

#[test]
fn one_finding_that_prevents_the_start_outweighs_remarks_and_comes_first() {
    let mut case = Case::with(|facts| place(facts, &["virtio_net", "e1000e"], DriverPlace::Absent));
    case.free_bytes = Some(0);
    case.server.disks.push(lifeboat_api::Disk {
        number: lifeboat_model::DiskNumber(0),
        path: "/dev/sda".into(),
        hardware_id: None,
        bytes: 1 << 40,
        waiting_bytes: 0,
        copy: None,
        trouble: None,
    });
    let findings = case.findings();
    assert_eq!(verdict(&findings), ReadinessVerdict::NotReady);
    assert_eq!(findings[0].code, "network_driver_missing");
    assert_eq!(findings[1].code, "little_room");
    assert_eq!(verdict(&findings[1..]), ReadinessVerdict::ReadyWithRemarks);
}

#[test]
fn points_are_there_and_young() {
    let mut case = Case::new();
    case.server.rpo.as_mut().unwrap().age_ms = 3_600_000;
    let found = case.one("point_old", false);
    assert!(found.what.contains("1 h 0 min old"), "{found:?}");
    case.server.state = Protection::FailedOver;
    case.one("failed_over", false);
    case.server.rpo = None;
    case.one("no_point", true);
    case.server.state = Protection::InitialCopy;
    case.one("no_point", true);
}

#[test]
fn facts_are_there_known_and_young() {
    let mut case = Case::with(|facts| facts.boot_ms = Fact::Unknown("no systemd".into()));
    let found = case.one("facts_unknown", false);
    assert!(found.what.contains("the length of the last start: no systemd"), "{found:?}");
    case = Case::new();
    case.received = 2000 - 86_401;
    case.one("facts_old", false);
    case.facts = None;
    case.one("facts_missing", false);
}

#[test]
fn disks_that_the_start_needs_are_protected() {
    let with = |added: FileSystem| Case::with(|facts| add_file_system(facts, added));
    let found = with(file_system("/srv", true, &["sdb"])).one("disk_not_protected", true);
    assert!(found.what.contains("/srv lies on sdb") && found.next_step.contains("nofail"), "{found:?}");
    let found = with(file_system("/", true, &["sdb", "sdc"])).one("disk_not_protected", true);
    assert!(found.what.contains("sdb and sdc") && !found.next_step.contains("nofail"), "{found:?}");
    with(file_system("swap", false, &["sdb"])).one("disk_left_behind", false);
    with(FileSystem { network: true, ..file_system("/n", true, &[]) }).one("network_file_system", false);
    let root = FileSystem { layers: vec![Layer::Encryption], ..file_system("/", true, &[]) };
    with(root).one("root_encrypted", false);
}

#[test]
fn the_firmware_is_the_sources_and_finds_a_loader() {
    let uefi = |fallback, secure| {
        Case::with(|facts| {
            facts.firmware = Fact::Known(facts::Firmware::Uefi {
                secure_boot: Fact::Known(secure),
                fallback_loader: Fact::Known(fallback),
            });
        })
    };
    assert_eq!(uefi(true, false).findings(), []);
    let found = uefi(false, false).one("fallback_loader_missing", true);
    assert!(found.next_step.contains("--force-extra-removable"), "{found:?}");
    uefi(true, true).one("secure_boot_off", false);
    let mut case = uefi(true, false);
    case.set.firmware = Some(Firmware::Bios);
    let found = case.one("firmware_differs", true);
    assert!(found.next_step.contains("lifeboat target set db1 --firmware uefi"), "{found:?}");
    let mut case = uefi(true, false);
    case.host.as_mut().unwrap().firmwares = vec![lifeboat_compute::Firmware::Bios];
    case.one("firmware_missing", true);
    Case::with(|facts| facts.disks[0].boot_code = Fact::Known(BootCode::None))
        .one("boot_loader_missing", true);
    Case::with(|facts| facts.architecture = "aarch64".into()).one("architecture_differs", true);
}

#[test]
fn a_missing_disk_driver_is_told_with_the_command_of_the_distribution() {
    let lacking = |id: &str, like: &[&str]| {
        let os = OperatingSystem {
            name: id.into(),
            id: id.into(),
            like: like.iter().map(|word| (*word).to_owned()).collect(),
        };
        Case::with(|facts| {
            facts.os = Fact::Known(os);
            place(facts, &["virtio_blk", "ahci", "nvme"], DriverPlace::RootFileSystem);
        })
        .one("disk_driver_missing", true)
        .next_step
    };
    let debian =
        "printf '%s\\n' virtio_pci virtio_blk >> /etc/initramfs-tools/modules && update-initramfs -u -k all";
    assert_eq!(lacking("debian", &[]), format!("On the source: {debian}."));
    assert_eq!(lacking("ubuntu", &["debian"]), format!("On the source: {debian}."));
    assert!(lacking("rocky", &["rhel", "centos", "fedora"]).contains("dracut --force"));
    assert!(lacking("opensuse-leap", &["suse", "opensuse"]).contains("/etc/dracut.conf.d/lifeboat.conf"));
    assert!(lacking("arch", &[]).contains("mkinitcpio -P"));
    assert!(lacking("void", &[]).contains("make it anew"));
}

#[test]
fn a_bus_that_would_work_is_named_before_the_source_is_changed() {
    let mut case = Case::with(|facts| place(facts, &["virtio_blk"], DriverPlace::RootFileSystem));
    assert_eq!(case.findings(), [], "the derived machine has its disks on SATA");
    case.set.disk_bus = Some(DiskBus::Virtio);
    let found = case.one("disk_driver_missing", true);
    assert!(found.next_step.starts_with("lifeboat target set db1 --disk-bus sata."), "{found:?}");
    let mut case = Case::with(|facts| place(facts, &["virtio_net"], DriverPlace::Absent));
    case.set.network_card = Some(NetworkCard::Virtio);
    let found = case.one("network_driver_missing", true);
    assert!(found.next_step.contains("--network-card e1000e"), "{found:?}");
}

#[test]
fn a_console_is_wanted_when_something_looks_at_it() {
    let without = || {
        Case::with(|facts| facts.kernel_command_line = Fact::Known("ro console=ttyS01 console=tty0".into()))
    };
    let found = without().one("no_serial_console", false);
    assert!(found.why.contains("SSH") && found.next_step.contains("update-grub"), "{found:?}");
    let mut case = without();
    case.set.probes = vec![Probe::Tcp { port: 5432 }];
    assert_eq!(case.findings(), []);
    case.set.probes.push(Probe::Console { text: "ready".into() });
    assert!(case.one("no_serial_console", false).why.contains("does not come"));
}

#[test]
fn the_recovery_host_is_large_and_fast_enough() {
    let mut case = Case::new();
    case.host = Ok(Capabilities { memory_mib_free: 3000, cpus: 2, ..host() });
    let codes: Vec<_> = case.findings().into_iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["less_memory", "fewer_processors"]);
    case.set.memory_mib = Some(4096);
    case.set.cpus = Some(4);
    let findings = case.findings();
    let codes: Vec<_> = findings.iter().map(|finding| finding.code.as_str()).collect();
    assert_eq!(codes, ["memory_too_large", "processors_shared"]);
    assert!(findings[0].next_step.contains("--memory 2880"), "{findings:?}");

    let mut case = Case::new();
    case.host =
        Ok(Capabilities { acceleration: Acceleration::Tcg { why_not_kvm: "no /dev/kvm".into() }, ..host() });
    let found = case.one("kvm_unavailable", false);
    assert!(found.why.contains("20.0 s here and may take 1 min 40 s to 6 min 40 s there"), "{found:?}");
    case.set.up_within = Some("60s".parse().unwrap());
    assert!(case.one("kvm_unavailable", false).next_step.contains("--up-within 400s"));
    case.host = Err("qemu-system-x86_64 is not installed".into());
    case.one("no_hypervisor", true);
}

#[test]
fn fixed_addresses_and_names_of_interfaces_are_told() {
    let with = |name: &str, address, named| {
        Case::with(|facts| {
            let mut one = interface(name, "52:54:00:00:00:01", address);
            (one.named, one.configured_by) = (named, Some(facts::NetworkConfiguration::Ifupdown));
            facts.interfaces = Fact::Known(vec![one]);
            facts.fits_copies = false;
        })
    };
    let mut case = with("enp0s2", Some(("192.0.2.7", 24)), true);
    assert!(case.one("fixed_address", false).next_step.contains("--network BRIDGE"));
    case.set.bridge = Some("lan".into());
    assert!(case.one("fixed_address", false).next_step.contains("the network of lan"));
    let found = with("eth0", Some(("192.0.2.7", 32)), true).one("address_not_matched", false);
    assert!(found.next_step.starts_with("Update the agent"), "{found:?}");

    for kept in ["eth0", "enp0s2", "enx525400000001"] {
        assert_eq!(with(kept, None, true).findings(), [], "{kept}");
    }
    assert_eq!(with("eno1", None, false).findings(), [], "nothing means it by its name");
    let found = with("eno1", None, true).one("interface_names", false);
    assert!(found.what.contains("/etc/network/interfaces names eno1"), "{found:?}");
    assert!(found.next_step.starts_with("Update the agent"), "{found:?}");
    assert!(found.next_step.contains("MACAddress=52:54:00:00:00:01\\n[Link]\\nName=eno1"), "{found:?}");

    let many = Case::with(|facts| {
        let one = |number: u8| interface("eth1", &format!("52:54:00:00:00:{number:02x}"), None);
        facts.interfaces = Fact::Known((0..9).map(one).collect());
    });
    many.one("interfaces_left_out", false);
}

#[test]
fn what_the_agent_changes_in_the_copy_is_no_finding() {
    let with = |name: &str, address, configured_by| {
        Case::with(|facts| {
            let mut one = interface(name, "52:54:00:00:00:01", address);
            (one.named, one.configured_by) = (true, configured_by);
            facts.interfaces = Fact::Known(vec![one]);
        })
    };
    let by = Some(facts::NetworkConfiguration::Netplan);
    assert_eq!(with("eno1", None, by).findings(), []);
    let found = with("eno/1", None, by).one("interface_names", false);
    assert!(found.next_step.starts_with("Bind the name"), "{found:?}");
    let found = with("eno1", Some(("192.0.2.7", 32)), by).one("fixed_address", false);
    assert!(found.why.contains("the copy's agent changes it"), "{found:?}");
    let found = with("eno1", Some(("192.0.2.7", 24)), by).one("fixed_address", false);
    assert!(found.why.contains("in a made network that has other addresses"), "{found:?}");
    let found = with("eno1", Some(("192.0.2.7", 32)), None).one("address_not_matched", false);
    assert!(found.next_step.starts_with("Let the console decide"), "{found:?}");
}
