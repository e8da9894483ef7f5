//! What machines are attached to.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lifeboat_compute::{
    Attachment, Forward, MacAddress, MachineStatus, Nic, NicModel, Probe, Provider, Reached, Subnet,
};

use crate::guests::UP;
use crate::linux;
use crate::machine::wait_for;
use crate::site::{Site, kill, processes_in};

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().unwrap().success()
}

/// A bridge that goes with the test.
struct Bridge(String);

impl Bridge {
    fn new() -> Self {
        let name = format!("lbtest{}", std::process::id() % 100_000);
        assert!(ip(&["link", "add", "name", &name, "type", "bridge"]));
        Self(name)
    }

    fn ports(&self) -> usize {
        std::fs::read_dir(format!("/sys/class/net/{}/brif", self.0)).unwrap().count()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        ip(&["link", "delete", "dev", &self.0]);
    }
}

#[tokio::test]
async fn devices_on_a_bridge_come_and_go_with_the_machine() {
    let bridge = Bridge::new();
    let site = Site::new().await;
    let id = 0x7e57_0000_0000 + u64::from(std::process::id());
    let mut spec = site.spec(id, UP);
    let attachment = Attachment::Bridge { name: bridge.0.clone(), address: None };
    let nic = |number, model| Nic { mac: MacAddress::local(number), model, attachment: attachment.clone() };
    spec.nics = vec![nic(1, NicModel::Virtio), nic(2, NicModel::E1000e)];
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
    assert_eq!(bridge.ports(), 2);
    site.provider.power_off(spec.id).await.unwrap();
    assert_eq!(bridge.ports(), 0, "a device is left while the machine is off");

    // A process that died takes nothing with it; the next look at the machine does.
    site.provider.start(&spec).await.unwrap();
    assert_eq!(bridge.ports(), 2);
    kill(processes_in(site.place.path())[0]);
    site.off(spec.id).await;
    assert_eq!(bridge.ports(), 0, "a device is left after the end of the process");

    // A device of that name that is somebody else's is not touched.
    site.provider.start(&spec).await.unwrap();
    let device = format!("lb{:011x}.0", id & 0xfff_ffff_ffff);
    assert!(Path::new("/sys/class/net").join(&device).exists());
    assert!(ip(&["link", "set", "dev", &device, "alias", "of somebody else"]));
    site.provider.remove(spec.id).await.unwrap();
    assert_eq!(bridge.ports(), 1);
    assert!(ip(&["link", "delete", "dev", &device]));
}

#[tokio::test]
async fn a_bridge_that_is_not_there_is_named() {
    let site = Site::new().await;
    let mut spec = site.spec(1, UP);
    let attachment = Attachment::Bridge { name: "lbnowhere".into(), address: None };
    spec.nics = vec![Nic { mac: MacAddress::local(1), model: NicModel::Virtio, attachment }];
    let error = site.provider.start(&spec).await.unwrap_err();
    assert!(error.to_string().contains("bridge lbnowhere: there is no such bridge"), "{error}");
    assert_eq!(processes_in(&site.place.path().join("state")), [0; 0]);
}

#[tokio::test]
async fn a_guest_that_does_not_listen_is_not_reached_through_its_open_forward() {
    let site = Site::new().await;
    let mut spec = site.spec(1, UP);
    let forwards = vec![Forward { host_port: 0, guest_port: 22 }, Forward { host_port: 0, guest_port: 80 }];
    let subnet = Subnet {
        network: [192, 168, 7, 0].into(),
        prefix: 24,
        gateway: [192, 168, 7, 1].into(),
        guest: [192, 168, 7, 30].into(),
    };
    let attachment = Attachment::Isolated { subnet: Some(subnet), forwards };
    spec.nics = vec![Nic { mac: MacAddress::local(1), model: NicModel::Virtio, attachment }];
    site.provider.start(&spec).await.unwrap();
    let status = site.provider.status(spec.id).await.unwrap();
    let MachineStatus::Running { forwards, .. } = status else { panic!("{status:?}") };
    assert_eq!(forwards.iter().map(|forward| forward.guest_port).collect::<Vec<_>>(), [22, 80]);
    for forward in &forwards {
        assert!(std::net::TcpStream::connect(("127.0.0.1", forward.host_port)).is_ok());
    }
    let reached = site.provider.reach(spec.id, 22, Duration::from_secs(1)).await.unwrap();
    let Reached::No(why) = reached else { panic!("a guest without a network took a connection") };
    assert!(why.contains("the guest does not answer on port 22"), "{why}");
    let error = site.provider.reach(spec.id, 23, Duration::from_secs(1)).await.unwrap_err();
    assert!(error.to_string().contains("none of its forwards leads to port 23"), "{error}");
}

#[tokio::test]
async fn a_guest_that_listens_is_reached_through_its_forward() {
    let site = Site::new().await;
    let script = [linux::BY_DHCP, &linux::web_server("hello")].concat();
    let mut spec = linux::spec(site.place.path(), 1, &script);
    let forwards = vec![Forward { host_port: 0, guest_port: 80 }, Forward { host_port: 0, guest_port: 81 }];
    let attachment = Attachment::Isolated { subnet: None, forwards };
    spec.nics = vec![Nic { mac: MacAddress::local(1), model: NicModel::Virtio, attachment }];
    site.provider.start(&spec).await.unwrap();
    let web = Probe::Http { port: 80, path: "/".into(), status: 200 };
    let passed = wait_for(async || web.attempt(&site.provider, spec.id).await.unwrap().ok());
    passed.await.expect("the guest is not reached");
    // Somebody else's connection changes nothing of either.
    let MachineStatus::Running { forwards, .. } = site.provider.status(spec.id).await.unwrap() else {
        panic!()
    };
    let _other = std::net::TcpStream::connect(("127.0.0.1", forwards[0].host_port)).unwrap();
    assert_eq!(Probe::Tcp { port: 80 }.attempt(&site.provider, spec.id).await.unwrap(), Ok(()));
    let refused = site.provider.reach(spec.id, 81, Duration::from_secs(10)).await.unwrap();
    assert!(matches!(refused, Reached::No(why) if why.contains("refuses connections to port 81")));
}

#[tokio::test]
async fn a_probe_of_the_console_passes_when_the_text_is_there() {
    let site = Site::new().await;
    let spec = site.spec(1, UP);
    site.provider.start(&spec).await.unwrap();
    let probe = |pattern: &str| Probe::Console { pattern: pattern.into() };
    let passed = wait_for(async || probe("UP\r\n").attempt(&site.provider, spec.id).await.unwrap().ok());
    passed.await.expect("the probe never passes");
    let waiting = probe("login:").attempt(&site.provider, spec.id).await.unwrap().unwrap_err();
    assert!(waiting.to_string().contains("its last line is \"UP\""), "{waiting}");
    site.provider.power_off(spec.id).await.unwrap();
    assert_eq!(probe("UP").attempt(&site.provider, spec.id).await.unwrap(), Ok(()));
    let error = probe("login:").attempt(&site.provider, spec.id).await.unwrap_err();
    assert!(error.to_string().contains("is off: it was powered off"), "{error}");
}
