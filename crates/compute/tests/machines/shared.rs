//! Networks that machines share.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lifeboat_compute::{
    Attachment, DiskAddress, DiskFormat, MacAddress, MachineId, MachineSpec, MachineStatus, NetworkId, Nic,
    NicModel, Probe, Provider, QemuProvider, Reached, SharedNetwork,
};

use crate::guests::{self, UP};
use crate::linux;
use crate::machine::{DISK_BYTES, wait_for};
use crate::site::{Site, kill, processes_in, settings};

const PLACE: &str = "LIFEBOAT_TEST_NETWORK_PLACE";

fn network(dhcp: bool) -> SharedNetwork {
    SharedNetwork {
        id: NetworkId::new(0x7e57_0000 + u64::from(std::process::id())),
        name: "lab".into(),
        subnet: "10.5.0.0/24".parse().unwrap(),
        gateway: [10, 5, 0, 1].into(),
        dhcp,
        outward: false,
    }
}

fn join(spec: &mut MachineSpec, network: &SharedNetwork, address: Option<Ipv4Addr>) {
    let attachment = Attachment::Shared { network: network.clone(), address };
    spec.nics = vec![Nic { mac: MacAddress::local(spec.id.number()), model: NicModel::Virtio, attachment }];
}

/// A machine of one sector, with a disk that no other machine has.
fn boots(place: &Path, number: u64) -> MachineSpec {
    let path = place.join(format!("image-{number}"));
    guests::disk(&path, UP, DISK_BYTES, "");
    crate::machine::spec(id(number), DiskAddress::File { path, format: DiskFormat::Raw })
}

/// An id that no test that runs at the same time has: names of devices come from it.
fn id(number: u64) -> u64 {
    0x7e58_0000_0000 + (u64::from(std::process::id()) << 8) + number
}

/// The host's devices that belong to a machine.
fn devices_of(id: u64) -> Vec<PathBuf> {
    let prefix = format!("lb{:011x}.", id & 0xfff_ffff_ffff);
    let devices = fs::read_dir("/sys/class/net").unwrap().flatten().map(|device| device.path());
    devices.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix)).collect()
}

/// Nothing is left of any network or machine: no process, which namespaces and their devices end with, no
/// device outside, no file.
fn assert_nothing_left(place: &Path, ids: &[u64]) {
    assert_eq!(processes_in(place), [0; 0]);
    for id in ids {
        assert_eq!(devices_of(*id), Vec::<PathBuf>::new());
    }
    for kept in ["state/networks", "state/machines"] {
        assert_eq!(fs::read_dir(place.join(kept)).unwrap().count(), 0, "{kept}");
    }
}

/// A web server of the host, at an address of its own (from a range for documentation) and at every other.
struct Outside {
    address: Ipv4Addr,
    port: u16,
    asked: Arc<AtomicUsize>,
}

impl Outside {
    fn open(number: u8) -> Self {
        let address = Ipv4Addr::new(198, 51, 100, number);
        assert!(ip(&["address", "replace", &format!("{address}/32"), "dev", "lo"]));
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nworld\n");
            }
        });
        Self { address, port, asked }
    }

    fn place(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        ip(&["address", "delete", &format!("{}/32", self.address), "dev", "lo"]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().unwrap().success()
}

#[tokio::test]
async fn machines_in_one_network_reach_each_other_and_nothing_else() {
    let site = Site::new().await;
    let outside = Outside::open(77);
    let place = site.place.path();
    let network = network(true);
    let fixed = Ipv4Addr::new(10, 5, 0, 10);

    let script = "ip address add 10.5.0.10/24 dev eth0\nip route add default via 10.5.0.1\n".to_owned();
    let mut first = linux::spec(place, id(1), &(script + &linux::web_server("hello from the first")));
    join(&mut first, &network, Some(fixed));
    site.provider.start(&first).await.unwrap();
    let host = format!("10.5.0.1:{}", outside.port);
    let script = [
        linux::BY_DHCP,
        &linux::ask("PEER", "10.5.0.10"),
        &linux::ask("WORLD", &outside.place()),
        &linux::ask("HOST", &host),
        &linux::web_server("hello from the second"),
    ];
    site.hears(first.id, |said| said.contains("IDLE")).await;
    let mut second = linux::spec(place, id(2), &script.concat());
    join(&mut second, &network, None);
    site.provider.start(&second).await.unwrap();

    // The guest of which the address is known is reached, by every kind of probe.
    let web = Probe::Http { port: 80, path: "/".into(), status: 200 };
    let passed = wait_for(async || web.attempt(&site.provider, first.id).await.unwrap().ok());
    passed.await.expect("the first guest is not reached");
    let refused = site.provider.reach(first.id, 81, Duration::from_secs(5)).await.unwrap();
    assert!(matches!(refused, Reached::No(why) if why.contains("10.5.0.10 refuses connections to port 81")));

    let said = site.hears(second.id, |said| said.contains("IDLE")).await;
    assert!(said.contains("PEER hello from the first"), "{said}");
    assert!(said.contains("WORLD NOTHING") && said.contains("HOST NOTHING"), "{said}");
    assert_eq!(outside.asked.load(Ordering::SeqCst), 0, "a packet has left the network");

    // The other has its address from the network, and is reached at it.
    let leased = site.provider.address(second.id).await.unwrap().expect("no lease is known");
    assert!(leased != fixed && network.subnet.has_host(leased), "{leased}");
    assert_eq!(web.attempt(&site.provider, second.id).await.unwrap(), Ok(()));
    let entrance = site.provider.entrance(network.id).await.unwrap().unwrap();
    let words: Vec<_> = entrance.split(' ').chain(["ip", "address", "show"]).collect();
    let shown = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("10.5.0.1/24"), "{shown:?}");

    site.provider.remove(second.id).await.unwrap();
    assert_eq!(web.attempt(&site.provider, first.id).await.unwrap(), Ok(()), "the network went too early");
    site.provider.remove(first.id).await.unwrap();
    assert_eq!(site.provider.entrance(network.id).await.unwrap(), None);
    assert_nothing_left(place, &[id(1), id(2)]);
}

#[tokio::test]
async fn a_machine_in_a_network_with_a_way_out_reaches_the_world_and_not_the_host_s_loopback() {
    let site = Site::new().await;
    let outside = Outside::open(78);
    let network = SharedNetwork { outward: true, ..network(true) };
    let script = [
        linux::BY_DHCP,
        &linux::ask("WORLD", &outside.place()),
        &linux::ask("LOOPBACK", &format!("198.18.0.2:{}", outside.port)),
    ];
    let mut spec = linux::spec(site.place.path(), id(3), &script.concat());
    join(&mut spec, &network, None);
    site.provider.start(&spec).await.unwrap();
    let said = site.hears(spec.id, |said| said.contains("IDLE")).await;
    assert!(said.contains("WORLD world") && said.contains("LOOPBACK NOTHING"), "{said}");
    site.provider.remove(spec.id).await.unwrap();
    assert_nothing_left(site.place.path(), &[id(3)]);
}

/// Runs as a process of its own: starts a machine in a network and then waits to be killed.
#[tokio::test]
#[ignore = "a part of another test"]
async fn starter() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    let place = PathBuf::from(place);
    let provider = QemuProvider::open(settings(&place)).await.unwrap();
    let spec: MachineSpec = serde_json::from_slice(&fs::read(place.join("spec")).unwrap()).unwrap();
    provider.start(&spec).await.unwrap();
    fs::write(place.join("started"), "").unwrap();
    std::future::pending::<()>().await;
}

/// Lets another process start the machine, and kills that.
async fn started_by_another(place: &Path, spec: &MachineSpec) {
    fs::write(place.join("spec"), serde_json::to_vec(spec).unwrap()).unwrap();
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "shared::starter", "--ignored", "--nocapture"])
        .env(PLACE, place)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(async || place.join("started").exists().then_some(())).await.expect("it does not start");
    starter.kill().unwrap();
    starter.wait().unwrap();
    fs::remove_file(place.join("started")).unwrap();
}

#[tokio::test]
async fn a_network_outlives_its_vault_and_goes_with_its_last_machine() {
    // Another site lends its images and ends what is left if this fails.
    let site = Site::new().await;
    let elsewhere = tempfile::TempDir::new_in(site.place.path()).unwrap();
    let place = elsewhere.path();
    let network = network(true);
    let mut first = boots(site.place.path(), 4);
    join(&mut first, &network, Some([10, 5, 0, 10].into()));
    started_by_another(place, &first).await;

    let provider = QemuProvider::open(settings(place)).await.unwrap();
    let entrance = provider.entrance(network.id).await.unwrap().expect("the network ended with its vault");
    let mut second = boots(site.place.path(), 5);
    join(&mut second, &network, Some([10, 5, 0, 11].into()));
    provider.start(&second).await.unwrap();
    assert_eq!(provider.entrance(network.id).await.unwrap().as_ref(), Some(&entrance), "there are two of it");
    // Both are on its bridge, and DHCP knows both addresses.
    let ports = Command::new("nsenter")
        .args(["--target", &holder(&entrance).to_string(), "--net"])
        .args(["ip", "-o", "link", "show", "master", "lifeboat"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ports.stdout).lines().count(), 2, "{ports:?}");
    let (_, reservations) = dhcp_server(place).unwrap();
    assert!(reservations.contains(",10.5.0.10") && reservations.contains(",10.5.0.11"), "{reservations}");

    // A guest that is powered off has left it.
    provider.power_off(first.id).await.unwrap();
    assert!(provider.entrance(network.id).await.unwrap().is_some());
    provider.power_off(second.id).await.unwrap();
    assert_eq!(provider.entrance(network.id).await.unwrap(), None);
    assert_eq!(dhcp_server(place), None);
    provider.remove(first.id).await.unwrap();
    provider.remove(second.id).await.unwrap();
    assert_nothing_left(place, &[id(4), id(5)]);

    // Vault and machine were killed: the next vault finds a network without a machine.
    drop(provider);
    started_by_another(place, &first).await;
    let machine = processes_in(&place.join("state/machines"));
    assert_eq!(machine.len(), 1);
    kill(machine[0]);
    wait_for(async || processes_in(&place.join("state/machines")).is_empty().then_some(())).await.unwrap();
    assert!(dhcp_server(place).is_some());
    let provider = QemuProvider::open(settings(place)).await.unwrap();
    assert_eq!(processes_in(place), [0; 0]);
    let status = provider.status(first.id).await.unwrap();
    assert!(matches!(status, MachineStatus::Off { .. }), "{status:?}");

    // Started again it has its network again, and a machine that ends by itself takes it along.
    provider.start(&first).await.unwrap();
    assert!(dhcp_server(place).is_some());
    kill(processes_in(&place.join("state/machines"))[0]);
    let off = wait_for(async || match provider.status(first.id).await.unwrap() {
        MachineStatus::Off { .. } => Some(()),
        _ => None,
    });
    off.await.unwrap();
    assert_eq!(processes_in(place), [0; 0]);
    provider.remove(first.id).await.unwrap();
    assert_nothing_left(place, &[id(4), id(5)]);
}

#[tokio::test]
async fn a_holder_that_somebody_ended_is_replaced_at_the_next_start() {
    let site = Site::new().await;
    let network = network(true);
    let mut spec = boots(site.place.path(), 6);
    join(&mut spec, &network, Some([10, 5, 0, 10].into()));
    site.provider.start(&spec).await.unwrap();
    let place = site.place.path();
    kill(holder(&site.provider.entrance(network.id).await.unwrap().unwrap()));
    // With the addresses that were known before, so that the DHCP server seems to be as it should be.
    let mut second = boots(place, 7);
    join(&mut second, &network, None);
    site.provider.start(&second).await.unwrap();
    let namespace_of = |process: i32| fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
    let entrance = site.provider.entrance(network.id).await.unwrap().unwrap();
    let (server, _) = dhcp_server(place).unwrap();
    assert_eq!(namespace_of(server), namespace_of(holder(&entrance)), "it serves the former namespace");
    for machine in [spec.id, second.id] {
        site.provider.remove(machine).await.unwrap();
    }
    assert_nothing_left(place, &[id(6), id(7)]);
}

#[tokio::test]
async fn what_a_network_lacks_is_said_and_nothing_is_left_of_it() {
    let place = tempfile::tempdir().unwrap();
    let site = Site::new().await;
    let mut settings = settings(place.path());
    settings.dnsmasq = "/nowhere/dnsmasq".into();
    settings.slirp4netns = "no-such-slirp4netns".into();
    let provider = QemuProvider::open(settings).await.unwrap();
    let mut spec = boots(site.place.path(), 8);
    let mut refused = async |network: &SharedNetwork, address: Option<[u8; 4]>| {
        join(&mut spec, network, address.map(Ipv4Addr::from));
        let error = provider.start(&spec).await.unwrap_err().to_string();
        provider.remove(spec.id).await.unwrap();
        assert_nothing_left(place.path(), &[id(8)]);
        error
    };
    let error = refused(&network(true), None).await;
    assert!(error.contains("install the Debian package dnsmasq-base"), "{error}");
    let error = refused(&SharedNetwork { outward: true, ..network(false) }, None).await;
    assert!(error.contains("install the Debian package slirp4netns"), "{error}");
    let error = refused(&network(false), Some([10, 6, 0, 1])).await;
    assert!(error.contains("10.6.0.1 is not in 10.5.0.0/24, which the network lab has"), "{error}");
    let error = refused(&network(false), Some([10, 5, 0, 1])).await;
    assert!(error.contains("that of the gateway"), "{error}");

    // Without DHCP nothing of that is needed, and a guest without an address is not reached.
    let mut spec = boots(site.place.path(), 9);
    join(&mut spec, &network(false), None);
    provider.start(&spec).await.unwrap();
    let reached = provider.reach(spec.id, 22, Duration::from_secs(1)).await.unwrap();
    assert!(matches!(reached, Reached::No(why) if why.contains("lifeboat target set --address")));
    provider.remove(spec.id).await.unwrap();
    assert_eq!(provider.machines().await.unwrap(), Vec::<MachineId>::new());
    assert_nothing_left(place.path(), &[id(9)]);
}

/// The process that holds the namespace to which this leads.
fn holder(entrance: &str) -> i32 {
    entrance.split(' ').find_map(|word| word.parse().ok()).unwrap()
}

/// The DHCP server that serves networks in this place, and its arguments.
fn dhcp_server(place: &Path) -> Option<(i32, String)> {
    let place = fs::canonicalize(place).unwrap();
    let leases = format!("--dhcp-leasefile={}", place.display());
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let process = entry.file_name().to_str()?.parse().ok()?;
        line.contains(&leases).then_some((process, line))
    })
}
