//! The physical network interfaces of a server, and how they are set up.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use lifeboat_wire::facts::Interface;

use super::addresses::Numbered;
use super::host::{Host, name};
use super::network_configuration as configuration;

pub(crate) const CLASS: &str = "/sys/class/net";

/// Interfaces that are told.
const INTERFACES_MAX: usize = 64;
/// A bridge of a bond of an interface is two steps up.
const MASTERS_MAX: usize = 4;

/// Physical interfaces in the kernel's order. `addresses` are those of all interfaces.
pub(super) fn interfaces(host: &Host, addresses: &[Numbered]) -> Vec<Interface> {
    let routes = host.text("/proc/net/route").unwrap_or_default();
    let mut numbered: Vec<(u32, String)> = Vec::new();
    for entry in host.entries(CLASS) {
        // What is made of software has no device; radio does not carry a copy.
        let is_card = host.has(entry.join("device")) && !host.has(entry.join("wireless"));
        if let Some(number) = number(host, &name(&entry)).filter(|_| is_card) {
            numbered.push((number, name(&entry)));
        }
    }
    numbered.sort_unstable();
    numbered.truncate(INTERFACES_MAX);
    numbered.iter().filter_map(|(_, name)| interface(host, name, addresses, &routes)).collect()
}

fn interface(host: &Host, name: &str, addresses: &[Numbered], routes: &str) -> Option<Interface> {
    let mac = mac(host, name)?;
    let masters = masters(host, name);
    let own = || std::iter::once(name).chain(masters.iter().map(String::as_str));
    let numbers: Vec<_> = own().filter_map(|name| number(host, name)).collect();
    // The one on top has the addresses, and the configuration of them.
    let configured: Vec<_> = own().filter_map(|name| configuration::of(host, name, &mac)).collect();
    let method = configured.iter().rev().find_map(|configured| configured.fixed);
    let of_these = addresses.iter().filter(|(number, _)| numbers.contains(number));
    let mut addresses: Vec<_> = of_these.map(|(_, address)| *address).collect();
    for address in addresses.iter_mut().filter(|address| address.address.is_ipv4()) {
        address.fixed = method.unwrap_or(address.fixed);
    }
    Some(Interface {
        name: name.to_owned(),
        gateway: own().find_map(|name| gateway(routes, name)).map(IpAddr::V4),
        part_of: masters.first().cloned(),
        addresses,
        configured_by: configured.last().map(|configured| configured.by),
        named: configured.iter().any(|configured| configured.named),
        mac,
    })
}

pub(crate) fn number(host: &Host, name: &str) -> Option<u32> {
    host.word(format!("{CLASS}/{name}/ifindex"))?.parse().ok()
}

/// In a bond, the interface shows the bond's address and the bond keeps its own.
pub(crate) fn mac(host: &Host, name: &str) -> Option<String> {
    let own = host.word(format!("{CLASS}/{name}/bonding_slave/perm_hwaddr"));
    let mac = own.or_else(|| host.word(format!("{CLASS}/{name}/address")))?.to_ascii_lowercase();
    let is_mac = mac.len() == 17 && mac.split(':').all(|pair| u8::from_str_radix(pair, 16).is_ok());
    is_mac.then_some(mac)
}

/// The bridges and bonds that an interface belongs to, from below.
fn masters(host: &Host, interface: &str) -> Vec<String> {
    let mut masters: Vec<String> = Vec::new();
    let mut below = interface.to_owned();
    while masters.len() < MASTERS_MAX {
        let Ok(link) = fs::read_link(host.path(format!("{CLASS}/{below}/master"))) else { break };
        below = name(Path::new(&link));
        masters.push(below.clone());
    }
    masters
}

/// The gateway of the default route through an interface, of several the one with the lowest metric.
/// The kernel writes addresses as numbers in hexadecimal, in its own byte order.
fn gateway(routes: &str, interface: &str) -> Option<Ipv4Addr> {
    let route = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_default =
            *fields.first()? == interface && *fields.get(1)? == "00000000" && *fields.get(7)? == "00000000";
        let gateway = u32::from_str_radix(fields.get(2)?, 16).ok().filter(|gateway| *gateway != 0)?;
        is_default.then_some((fields.get(6)?.parse::<u32>().ok()?, Ipv4Addr::from(gateway.to_ne_bytes())))
    };
    routes.lines().filter_map(route).min().map(|(_, gateway)| gateway)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::os::unix::fs::symlink;

    use lifeboat_wire::facts::{Address, NetworkConfiguration};

    use super::*;

    #[test]
    fn an_interface_below_a_bond_and_a_bridge_has_their_addresses_and_its_own_card() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (number, name) in [(1, "lo"), (2, "eno1"), (3, "bond0"), (4, "br0"), (5, "eno2")] {
            write(&format!("sys/class/net/{name}/ifindex"), &format!("{number}\n"));
            write(&format!("sys/class/net/{name}/address"), "52:54:00:00:00:99\n");
        }
        write("sys/class/net/eno1/device/vendor", "");
        write("sys/class/net/eno2/device/vendor", "");
        write("sys/class/net/eno1/bonding_slave/perm_hwaddr", "52:54:00:AA:BB:01\n");
        symlink("../bond0", root.path().join("sys/class/net/eno1/master")).unwrap();
        symlink("../br0", root.path().join("sys/class/net/bond0/master")).unwrap();
        write("etc/network/interfaces", "iface bond0 inet manual\niface br0 inet static\n");
        write(
            "proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
            br0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\nbr0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n",
        );
        let host = Host::new(root.path(), || {});
        let address = |text: &str| Address { address: text.parse().unwrap(), prefix: 24, fixed: false };
        let addresses = [(4, address("192.0.2.7")), (1, address("127.0.0.1"))];
        let found = interfaces(&host, &addresses);
        assert_eq!(found.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["eno1", "eno2"]);
        let eno1 = &found[0];
        assert_eq!((eno1.mac.as_str(), eno1.part_of.as_deref()), ("52:54:00:aa:bb:01", Some("bond0")));
        assert_eq!(eno1.addresses, [Address { fixed: true, ..address("192.0.2.7") }]);
        assert_eq!(eno1.gateway, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(eno1.configured_by, Some(NetworkConfiguration::Ifupdown));
        assert!(found[1].addresses.is_empty() && found[1].gateway.is_none() && !found[1].named);
    }
}
