//! What machines are attached to.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lifeboat_compute::{
    Attachment, Forward, MacAddress, MachineStatus, Nic, NicModel, Probe, Provider, Reached, Subnet,
};

use crate::daemon::kill;
use crate::guests::UP;
use crate::linux;
use crate::machine::wait_for;
use crate::site::Site;

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().unwrap().success()
}

/// A bridge that goes with the test.
struct Bridge(String);

impl Bridge {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lvtest{}-{number}", std::process::id() % 100_000);
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
    let mut spec = site.spec(1, UP);
    let attachment = Attachment::Bridge { name: bridge.0.clone(), address: None };
    let nic = |number, model| Nic { mac: MacAddress::local(number), model, attachment: attachment.clone() };
    spec.nics = vec![nic(1, NicModel::Virtio), nic(2, NicModel::E1000e)];
    site.provider().start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
    assert_eq!(bridge.ports(), 2);
    site.provider().power_off(spec.id).await.unwrap();
    assert_eq!(bridge.ports(), 0, "a device is left while the machine is off");
    site.provider().start(&spec).await.unwrap();
    assert_eq!(bridge.ports(), 2);
    kill(site.processes(spec.id)[0]);
    site.off(spec.id).await;
    assert_eq!(bridge.ports(), 0, "a device is left after the end of the process");
    site.provider().remove(spec.id).await.unwrap();

    spec.nics[0].attachment = Attachment::Bridge { name: "lvnowhere".into(), address: None };
    let error = site.provider().start(&spec).await.unwrap_err();
    assert!(error.to_string().contains("bridge lvnowhere: there is no such bridge"), "{error}");
    site.provider().remove(spec.id).await.unwrap();
    site.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_on_a_bridge_is_reached_at_its_address() {
    let bridge = Bridge::new();
    let (host, guest) = ("198.18.7.1/24", Ipv4Addr::new(198, 18, 7, 2));
    assert!(ip(&["address", "add", host, "dev", &bridge.0]) && ip(&["link", "set", &bridge.0, "up"]));
    let site = Site::new().await;
    let script = format!("ip address add {guest}/24 dev eth0\n{}", linux::web_server("hello"));
    let mut spec = linux::spec(site.place.path(), 1, &script);
    let on_bridge = |address| {
        let attachment = Attachment::Bridge { name: bridge.0.clone(), address };
        vec![Nic { mac: MacAddress::local(1), model: NicModel::Virtio, attachment }]
    };
    spec.nics = on_bridge(Some(guest));
    let provider = site.provider();
    provider.start(&spec).await.unwrap();
    assert_eq!(provider.address(spec.id).await.unwrap(), Some(guest));
    let web = Probe::Http { port: 80, path: "/".into(), status: 200 };
    let passed = wait_for(async || web.attempt(provider, spec.id).await.unwrap().ok());
    passed.await.expect("the guest is not reached");
    let reached = provider.reach(spec.id, 81, Duration::from_secs(5)).await.unwrap();
    let Reached::No(why) = reached else { panic!("a connection to a port on which nobody listens") };
    assert_eq!(why, "the guest at 198.18.7.2 refuses connections to port 81");
    provider.remove(spec.id).await.unwrap();

    spec.nics = on_bridge(None);
    provider.start(&spec).await.unwrap();
    assert_eq!(provider.address(spec.id).await.unwrap(), None);
    let reached = provider.reach(spec.id, 80, Duration::from_secs(5)).await.unwrap();
    let Reached::No(why) = reached else { panic!("nobody knows where it is") };
    assert!(why.contains("lifeboat target set --address"), "{why}");
    provider.remove(spec.id).await.unwrap();
    site.assert_nothing_left();
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
    site.provider().start(&spec).await.unwrap();
    let status = site.provider().status(spec.id).await.unwrap();
    let MachineStatus::Running { forwards, .. } = status else { panic!("{status:?}") };
    assert_eq!(forwards.iter().map(|forward| forward.guest_port).collect::<Vec<_>>(), [22, 80]);
    for forward in &forwards {
        assert!(std::net::TcpStream::connect(("127.0.0.1", forward.host_port)).is_ok());
    }
    let reached = site.provider().reach(spec.id, 22, Duration::from_secs(1)).await.unwrap();
    let Reached::No(why) = reached else { panic!("a guest without a network took a connection") };
    assert!(why.contains("the guest does not answer on port 22"), "{why}");
    let error = site.provider().reach(spec.id, 23, Duration::from_secs(1)).await.unwrap_err();
    assert!(error.to_string().contains("none of its forwards leads to port 23"), "{error}");
    site.provider().remove(spec.id).await.unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_is_said() {
    let site = Site::new().await;
    let mut spec = site.spec(1, UP);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host_port = taken.local_addr().unwrap().port();
    let forwards = vec![Forward { host_port, guest_port: 22 }];
    let attachment = Attachment::Isolated { subnet: None, forwards };
    spec.nics = vec![Nic { mac: MacAddress::local(1), model: NicModel::E1000e, attachment }];
    let said = site.provider().start(&spec).await.unwrap_err().to_string();
    assert!(said.contains("did not start") && said.contains(&host_port.to_string()), "{said}");
    site.provider().remove(spec.id).await.unwrap();
    site.assert_nothing_left();
}
