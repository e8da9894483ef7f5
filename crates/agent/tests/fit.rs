//! A started copy is fitted to its machine: with real interfaces, in a network namespace of each test's own, and
//! real files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use lifeboat_model::{AddressChange, CardChange, SMBIOS_MANUFACTURER, SMBIOS_PRODUCT};
use tempfile::TempDir;

/// Says that it listens to the kernel's events, and when its input ends which there were.
const UEVENTS: &str = r#"
import socket, sys
events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
events.bind((0, 1))
print("ready", flush=True)
sys.stdin.read()
events.setblocking(False)
try:
    while True:
        print(events.recv(65536).split(b"\0")[0].decode())
except BlockingIOError:
    pass
"#;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A machine: network cards, firmware, and the files of the system in it.
struct Machine {
    namespace: String,
    root: TempDir,
}

impl Machine {
    /// A copy whose firmware orders these changes.
    fn copy(changes: &[CardChange]) -> Self {
        Self::with(SMBIOS_MANUFACTURER, changes)
    }

    fn with(manufacturer: &str, changes: &[CardChange]) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("lifeboat-fit-{}-{number}", std::process::id());
        let machine = Self { namespace, root: tempfile::tempdir().unwrap() };
        run(Command::new("ip").args(["netns", "add", &machine.namespace]));
        machine.write("sys/class/dmi/id/sys_vendor", manufacturer);
        machine.write("sys/class/dmi/id/product_name", SMBIOS_PRODUCT);
        let texts = changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\0");
        let tables = [b"\x0b\x05\0\0\x01".as_slice(), texts.as_bytes(), b"\0\0\x7f\x04\0\0\0\0"];
        machine.write("sys/firmware/dmi/tables/DMI", tables.concat());
        symlink("/sys/class/net", machine.path("sys/class/net")).unwrap();
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Runs a command among the machine's network cards.
    fn inside(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new("ip").args(["netns", "exec", &self.namespace, program]).args(arguments).output().unwrap()
    }

    fn ip(&self, arguments: &str) -> String {
        let arguments: Vec<_> = arguments.split(' ').collect();
        let output = self.inside("ip", &arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn add_card(&self, name: &str, number: u8) {
        // A tap device, since not every kernel has dummies.
        self.ip(&format!("tuntap add dev {name} mode tap"));
        self.ip(&format!("link set dev {name} address {}", mac(number)));
    }

    /// The index of each interface and its name, in order.
    fn interfaces(&self) -> Vec<(u32, String)> {
        let listed = self.ip("-o link show");
        let read = |line: &str| {
            let mut fields = line.split(": ");
            let index = fields.next()?.parse().ok()?;
            Some((index, fields.next()?.split('@').next()?.to_owned()))
        };
        listed.lines().filter_map(read).collect()
    }

    /// The name of the card with this number.
    fn name_of(&self, number: u8) -> String {
        let listed = self.ip("-o link show");
        let line = listed.lines().find(|line| line.contains(&mac(number))).unwrap();
        line.split(": ").nth(1).unwrap().to_owned()
    }

    fn fit(&self) -> Output {
        let root = self.root.path().to_str().unwrap();
        self.inside(env!("CARGO_BIN_EXE_lifeboat-agent"), &["fit", "--root", root])
    }

    fn fits(&self) {
        let output = self.fit();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// What the kernel tells udev of the machine's devices while something is done, a line each.
    fn told_to_udev(&self, done: impl FnOnce()) -> String {
        let mut listener = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "python3", "-c", UEVENTS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(listener.stdout.take().unwrap());
        let mut ready = String::new();
        lines.read_line(&mut ready).unwrap();
        done();
        drop(listener.stdin.take());
        let mut told = String::new();
        lines.read_to_string(&mut told).unwrap();
        listener.wait().unwrap();
        told
    }

    /// What cannot be done, as it is told.
    fn trouble(&self) -> String {
        let output = self.fit();
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        run(Command::new("ip").args(["netns", "delete", &self.namespace]));
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn mac(number: u8) -> String {
    format!("52:54:00:00:00:{number:02x}")
}

fn named(number: u8, name: &str) -> CardChange {
    CardChange { mac: mac(number).parse().unwrap(), name: Some(name.parse().unwrap()), address: None }
}

const ADDRESS: AddressChange = AddressChange {
    from: std::net::Ipv4Addr::new(192, 0, 2, 7),
    to: std::net::Ipv4Addr::new(10, 5, 0, 2),
    prefix: 24,
    gateway: Some((std::net::Ipv4Addr::new(192, 0, 2, 1), std::net::Ipv4Addr::new(10, 5, 0, 1))),
};

fn addressed() -> CardChange {
    CardChange { mac: mac(1).parse().unwrap(), name: None, address: Some(ADDRESS) }
}

#[test]
fn cards_get_the_names_that_their_configuration_means() {
    let machine = Machine::copy(&[named(1, "eno1"), named(2, "enp3s0"), named(3, "kept")]);
    for (name, number) in [("enp0s2", 1), ("enp0s3", 2), ("kept", 3), ("enp0s5", 4)] {
        machine.add_card(name, number);
    }
    machine.ip("link set enp0s2 up");
    // As udev gives them: another card has the name already, as one of two.
    machine.ip("link property add dev enp0s3 altname eno1");
    // A bridge often has its card's address.
    machine.ip(&format!("link add br0 address {} type bridge", mac(1)));
    machine.fits();
    assert_eq!((machine.name_of(2).as_str(), machine.name_of(4).as_str()), ("enp3s0", "enp0s5"));
    let up = machine.ip("-o link show eno1");
    assert!(up.contains(&mac(1)) && up.contains("UP"), "{up}");
    assert!(machine.interfaces().iter().any(|(_, name)| name == "br0"));
    let before = machine.interfaces();
    machine.fits();
    assert_eq!(machine.interfaces(), before);
}

#[test]
fn cards_that_have_each_other_s_names_exchange_them() {
    let machine = Machine::copy(&[named(1, "eth0"), named(2, "eth1"), named(3, "eth2")]);
    for (name, number) in [("eth1", 1), ("eth2", 2), ("eth0", 3)] {
        machine.add_card(name, number);
    }
    machine.ip("link set eth2 up");
    machine.fits();
    for number in 1..=3 {
        assert_eq!(machine.name_of(number), format!("eth{}", number - 1));
    }
    assert!(machine.ip("-o link show eth1").contains("UP"));
    assert!(!machine.ip("-o link show eth0").contains("UP"));
}

#[test]
fn udev_is_told_of_a_name_once_it_has_done_with_the_card() {
    let machine = Machine::copy(&[named(1, "eno1")]);
    machine.add_card("enp0s2", 1);
    let index = machine.interfaces().into_iter().find(|(_, name)| name == "enp0s2").unwrap().0;
    machine.write("run/udev/control", "");
    machine.write(&format!("run/udev/data/n{index}"), "E:ID_NET_NAME=enp0s2\n");
    let told = machine.told_to_udev(|| machine.fits());
    assert_eq!(machine.name_of(1), "eno1");
    assert!(told.lines().any(|line| line.starts_with("add@") && line.ends_with("/eno1")), "{told}");
}

#[test]
fn what_cannot_be_named_is_told_and_the_rest_is_done() {
    let machine = Machine::copy(&[named(1, "taken"), named(2, "eno2"), named(9, "eno9")]);
    for (name, number) in [("enp0s2", 1), ("enp0s3", 2), ("taken", 3)] {
        machine.add_card(name, number);
    }
    let told = machine.trouble();
    assert!(told.contains(&format!("no network card has the address {}", mac(9))), "{told}");
    assert!(told.contains("cannot be named taken: another interface has that name"), "{told}");
    assert_eq!((machine.name_of(1).as_str(), machine.name_of(2).as_str()), ("enp0s2", "eno2"));
}

#[test]
fn an_original_is_never_touched() {
    let machine = Machine::with("Dell Inc.", &[named(1, "eno1"), addressed()]);
    machine.add_card("enp0s2", 1);
    machine.write("etc/network/interfaces", "iface eno1 inet static\n address 192.0.2.7/24\n");
    machine.fits();
    assert_eq!(machine.name_of(1), "enp0s2");
    assert!(machine.text("etc/network/interfaces").contains("192.0.2.7/24"));
    assert!(!machine.path("var").exists());
}

/// A file of each kind, and what it becomes.
const FILES: [(&str, &str, &str); 8] = [
    (
        "etc/network/interfaces",
        "source /etc/network/interfaces.d/*\nauto br0\niface br0 inet static\n\taddress 192.0.2.7/24\n\tgateway 192.0.2.1\n",
        "source /etc/network/interfaces.d/*\nauto br0\niface br0 inet static\n\taddress 10.5.0.2/24\n\tgateway 10.5.0.1\n",
    ),
    (
        "etc/network/interfaces.d/eno1",
        "iface eno1 inet static\n address 192.0.2.7\n netmask 255.255.0.0\n",
        "iface eno1 inet static\n address 10.5.0.2\n netmask 255.255.255.0\n",
    ),
    (
        "etc/netplan/50-cloud-init.yaml",
        "network:\n  ethernets:\n    eno1:\n      addresses:\n      - 192.0.2.7/24\n",
        "network:\n  ethernets:\n    eno1:\n      addresses:\n      - 10.5.0.2/24\n",
    ),
    (
        "etc/systemd/network/10-eno1.network",
        "[Network]\nAddress=192.0.2.7/24\n",
        "[Network]\nAddress=10.5.0.2/24\n",
    ),
    (
        "run/systemd/network/10-netplan-eno1.network",
        "[Network]\nAddress=192.0.2.7/24\n",
        "[Network]\nAddress=10.5.0.2/24\n",
    ),
    (
        "etc/NetworkManager/system-connections/eno1.nmconnection",
        "[ipv4]\naddress1=192.0.2.7/24,192.0.2.1\n",
        "[ipv4]\naddress1=10.5.0.2/24,10.5.0.1\n",
    ),
    (
        "etc/sysconfig/network-scripts/ifcfg-eno1",
        "IPADDR=192.0.2.7\nPREFIX=24\n",
        "IPADDR=10.5.0.2\nPREFIX=24\n",
    ),
    (
        "etc/sysconfig/network-scripts/route-eno1",
        "172.16.0.0/12 via 192.0.2.1\n",
        "172.16.0.0/12 via 10.5.0.1\n",
    ),
];

#[test]
fn an_address_is_changed_in_every_kind_of_configuration() {
    let machine = Machine::copy(&[addressed()]);
    for (path, text, _) in FILES {
        machine.write(path, text);
        fs::set_permissions(machine.path(path), PermissionsExt::from_mode(0o640)).unwrap();
        chown(machine.path(path), Some(7), Some(9)).unwrap();
        let attribute = |name: &str| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(machine.path(path), name, b"kept", flags).unwrap();
        };
        attribute("user.lifeboat");
        attribute("security.lifeboat");
    }
    let beside = "# 192.0.2.7\n";
    machine.write("etc/hosts", beside);
    machine.write("etc/network/interfaces.d/eno2", "iface eno2 inet dhcp\n");
    machine.fits();
    for (path, text, expected) in FILES {
        assert_eq!(machine.text(path), expected, "{path}");
        let known = fs::metadata(machine.path(path)).unwrap();
        assert_eq!((known.mode() & 0o7777, known.uid(), known.gid()), (0o640, 7, 9), "{path}");
        for name in ["user.lifeboat", "security.lifeboat"] {
            let mut value = [0; 16];
            let length = rustix::fs::getxattr(machine.path(path), name, &mut value[..]).unwrap();
            assert_eq!(&value[..length], b"kept", "{path}");
        }
        if path.starts_with("etc") {
            assert_eq!(machine.text(&format!("var/lib/lifeboat-agent/before-fit/{path}")), text);
        }
        let siblings = fs::read_dir(machine.path(path).parent().unwrap()).unwrap();
        let siblings: Vec<_> =
            siblings.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(siblings.iter().all(|name| !name.contains("lifeboat")), "{siblings:?}");
    }
    assert_eq!(machine.text("etc/hosts"), beside);

    let inodes = || FILES.map(|(path, ..)| fs::metadata(machine.path(path)).unwrap().ino());
    let before = inodes();
    machine.fits();
    assert_eq!(inodes(), before, "the second start writes nothing");

    // What is kept is the original's, whatever becomes of the file in the copy.
    let (path, text, _) = FILES[0];
    machine.write(path, format!("# by hand\n{text}"));
    machine.fits();
    assert!(machine.text(path).starts_with("# by hand") && !machine.text(path).contains(text));
    assert_eq!(machine.text(&format!("var/lib/lifeboat-agent/before-fit/{path}")), text);
}

#[test]
fn a_link_stays_one_and_what_it_leads_to_is_changed() {
    let machine = Machine::copy(&[addressed()]);
    let (path, text, expected) = FILES[0];
    machine.write("etc/network/interfaces.real", text);
    symlink("interfaces.real", machine.path(path)).unwrap();
    machine.fits();
    assert!(machine.path(path).is_symlink());
    assert_eq!(machine.text("etc/network/interfaces.real"), expected);
}

#[test]
fn an_address_that_nothing_configures_is_told() {
    let machine = Machine::copy(&[addressed()]);
    machine.write("etc/network/interfaces", "iface eno1 inet static\n address 192.0.2.8/24\n");
    let told = machine.trouble();
    assert!(told.contains("the address 192.0.2.7 is to become 10.5.0.2"), "{told}");
    machine.write("etc/network/interfaces", [0xff, 0xfe]);
    let told = machine.trouble();
    assert!(told.contains("/etc/network/interfaces cannot be read"), "{told}");
}
