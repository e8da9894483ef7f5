//! What machines are attached to.

use std::process::Command;
use std::time::Duration;

use lifeboat_compute::{
    Attachment, Forward, MacAddress, MachineStatus, Nic, NicModel, Provider, Reached, Subnet,
};

use crate::daemon::kill;
use crate::guests::UP;
use crate::site::Site;

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().unwrap().success()
}

/// A bridge that goes with the test.
struct Bridge(String);

impl Bridge {
    fn new() -> Self {
        let name = format!("lvtest{}", std::process::id() % 100_000);
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
