//! The machine that a server becomes: what an operator has set, and the rest from the server's facts and
//! from what the recovery site can do. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use lifeboat_api::{DiskBus, Firmware, MachinePurpose, NetworkCard, Target, TargetSettings};
use lifeboat_compute::{Acceleration, Attachment, Capabilities, MacAddress, Nic, Subnet};
use lifeboat_model::{AddressChange, CardChange, InterfaceName, ServerId, Span};
use lifeboat_wire::facts::{self, DriverPlace, Fact, Interface, ServerFacts};

/// Memory that a machine needs beside its own, and that is left to the recovery host.
const HOST_SPARE_MIB: u64 = 256;
/// Guests with less do not start.
const MEMORY_MIB_MIN: u64 = 128;
/// Memory is given in steps of these.
const MEMORY_STEP_MIB: u64 = 64;
/// How much longer a start may take than on the source.
const SLOWER_WITH_KVM: u64 = 3;
const SLOWER_IN_EMULATION: u64 = 20;
const DAY_SECONDS: u64 = 86_400;
/// Network interfaces that a machine can have.
pub(crate) const NICS_MAX: usize = 8;
/// The addresses of a network that a machine has for itself, where the source's cannot be had: QEMU's usual ones.
const USUAL_SUBNET: Subnet = Subnet {
    network: Ipv4Addr::new(10, 0, 2, 0),
    prefix: 24,
    gateway: Ipv4Addr::new(10, 0, 2, 2),
    guest: Ipv4Addr::new(10, 0, 2, 15),
};

/// How a machine is to look, and how that came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Derived {
    pub target: Target,
    /// The source's interfaces that the machine has too.
    pub interfaces: Vec<Interface>,
    /// Whether the interface by which the server is reached has a fixed address that its agent can change in
    /// the copy.
    pub changes_address: bool,
    /// Clauses on what the machine has less of than its source.
    pub less: Vec<String>,
}

/// Whether a guest can drive a device at the moment when it needs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drives {
    Yes,
    No,
    Unknown,
}

/// The machine for a purpose. Without `host`, nothing is cut to what it has.
pub(crate) fn derive(
    server: ServerId,
    set: &TargetSettings,
    facts: Option<&ServerFacts>,
    host: Option<&Capabilities>,
    purpose: MachinePurpose,
) -> Derived {
    let usual = Target::default();
    let mut from = BTreeMap::new();
    let mut less = Vec::new();
    let mut value = |name: &str, (derived, reason): (_, String)| {
        from.insert(name.to_owned(), reason);
        derived
    };
    let interfaces = facts.map(interfaces).unwrap_or_default();
    let mut target = Target {
        firmware: set.firmware.unwrap_or(usual.firmware),
        disk_bus: set.disk_bus.unwrap_or(usual.disk_bus),
        network_card: set.network_card.unwrap_or(usual.network_card),
        mac: set.mac.clone(),
        bridge: set.bridge.clone(),
        network: set.network.clone(),
        test_network: set.test_network.clone(),
        address: set.address,
        probes: set.probes.clone(),
        cpus: set
            .cpus
            .unwrap_or_else(|| value("cpus", cpus(facts, host, &mut less)).try_into().unwrap_or(u32::MAX)),
        memory_mib: set
            .memory_mib
            .unwrap_or_else(|| value("memory_mib", memory_mib(facts, host, purpose, &mut less))),
        up_within: set
            .up_within
            .unwrap_or_else(|| Span::seconds(value("up_within", up_within_seconds(facts, host)))),
        derived: BTreeMap::new(),
    };
    if set.firmware.is_none() {
        let (firmware, reason) = firmware(facts);
        target.firmware = firmware;
        from.insert("firmware".into(), reason);
    }
    if set.disk_bus.is_none() {
        let (bus, reason) = disk_bus(facts);
        target.disk_bus = bus;
        from.insert("disk_bus".into(), reason);
    }
    if set.network_card.is_none() {
        let (card, reason) = network_card(facts);
        target.network_card = card;
        from.insert("network_card".into(), reason);
    }
    if set.mac.is_none() {
        let (mac, reason) = match interfaces.get(primary(&interfaces)) {
            Some(one) => (one.mac.clone(), format!("the source's {}", one.name)),
            None => (MacAddress::local(server.number()).to_string(), "made from the server's id".to_owned()),
        };
        target.mac = Some(mac);
        from.insert("mac".into(), reason);
    }
    if set.address.is_none()
        && let Some(one) = interfaces.get(primary(&interfaces))
        && let Some(address) = fixed_address(one)
    {
        target.address = Some(address);
        from.insert("address".into(), format!("the fixed one of the source's {}", one.name));
    }
    target.derived = from;
    let changes_address = facts
        .zip(interfaces.get(primary(&interfaces)))
        .is_some_and(|(facts, interface)| changes_address(facts, interface));
    Derived { target, interfaces, changes_address, less }
}

const NOT_KNOWN: &str = "the usual, since the source's is not known";

fn cpus(facts: Option<&ServerFacts>, host: Option<&Capabilities>, less: &mut Vec<String>) -> (u64, String) {
    let Some(source) = facts.and_then(|facts| facts.cpus.known().copied()) else {
        return (u64::from(Target::default().cpus), NOT_KNOWN.to_owned());
    };
    let most = host.map_or(u32::MAX, |host| host.cpus.max(1));
    if source > most {
        less.push(format!("{most} processors instead of {source}"));
        return (u64::from(most), format!("the source has {source}, the recovery host {most}"));
    }
    (u64::from(source.max(1)), "as the source has".to_owned())
}

/// A drill takes no more than half of what is free: other drills and failovers may come.
fn memory_mib(
    facts: Option<&ServerFacts>,
    host: Option<&Capabilities>,
    purpose: MachinePurpose,
    less: &mut Vec<String>,
) -> (u64, String) {
    let Some(bytes) = facts.and_then(|facts| facts.memory_bytes.known().copied()) else {
        return (Target::default().memory_mib, NOT_KNOWN.to_owned());
    };
    let source = (bytes >> 20).max(1).next_multiple_of(MEMORY_STEP_MIB);
    let free = host.map_or(u64::MAX, |host| host.memory_mib_free);
    let (most, of) = match purpose {
        MachinePurpose::Drill => (free / 2, ", of which a drill takes half at most"),
        MachinePurpose::Failover => (free.saturating_sub(HOST_SPARE_MIB), ""),
    };
    let most = (most / MEMORY_STEP_MIB * MEMORY_STEP_MIB).max(MEMORY_MIB_MIN);
    if source > most {
        less.push(format!("{most} MiB of memory instead of {source} MiB"));
        return (most, format!("the source has {source} MiB, the recovery host {free} MiB free{of}"));
    }
    (source, "as the source has".to_owned())
}

fn up_within_seconds(facts: Option<&ServerFacts>, host: Option<&Capabilities>) -> (u64, String) {
    let usual = Target::default().up_within.duration().as_secs();
    let Some(boot_ms) = facts.and_then(|facts| facts.boot_ms.known().copied()) else {
        return (usual, "the usual".to_owned());
    };
    let slower = match host.map(|host| &host.acceleration) {
        Some(Acceleration::Tcg { .. }) => SLOWER_IN_EMULATION,
        _ => SLOWER_WITH_KVM,
    };
    let wanted = (boot_ms / 1000).saturating_mul(slower).min(DAY_SECONDS).next_multiple_of(60);
    if wanted > usual {
        (
            wanted,
            format!("the source starts in {} s, the machine up to {slower} times slower", boot_ms / 1000),
        )
    } else {
        (usual, "the usual, which is enough".to_owned())
    }
}

fn firmware(facts: Option<&ServerFacts>) -> (Firmware, String) {
    match facts.and_then(|facts| facts.firmware.known()) {
        Some(facts::Firmware::Bios) => (Firmware::Bios, "as the source has".to_owned()),
        Some(facts::Firmware::Uefi { .. }) => (Firmware::Uefi, "as the source has".to_owned()),
        None => (Target::default().firmware, NOT_KNOWN.to_owned()),
    }
}

fn disk_bus(facts: Option<&ServerFacts>) -> (DiskBus, String) {
    const BUSES: [DiskBus; 3] = [DiskBus::Virtio, DiskBus::Sata, DiskBus::Nvme];
    let Some(facts) = facts else { return (DiskBus::Virtio, "the usual".to_owned()) };
    let of = |wanted| BUSES.into_iter().find(|bus| drives_disk(facts, *bus) == wanted);
    if let Some(bus) = of(Drives::Yes) {
        return (bus, "the source's initramfs has its driver".to_owned());
    }
    match of(Drives::Unknown) {
        Some(bus) => (bus, "which drivers the source's initramfs has is not known".to_owned()),
        None => (DiskBus::Virtio, "the source's initramfs has no driver for any".to_owned()),
    }
}

fn network_card(facts: Option<&ServerFacts>) -> (NetworkCard, String) {
    const CARDS: [NetworkCard; 2] = [NetworkCard::Virtio, NetworkCard::E1000e];
    let Some(facts) = facts else { return (NetworkCard::Virtio, "the usual".to_owned()) };
    let of = |wanted| CARDS.into_iter().find(|card| drives_network(facts, *card) == wanted);
    if let Some(card) = of(Drives::Yes) {
        return (card, "the source has its driver".to_owned());
    }
    match of(Drives::Unknown) {
        Some(card) => (card, "which drivers the source has is not known".to_owned()),
        None => (NetworkCard::Virtio, "the source has no driver for any".to_owned()),
    }
}

/// The drivers without which a guest does not find its disks on a bus.
pub(crate) const fn disk_drivers(bus: DiskBus) -> &'static [&'static str] {
    match bus {
        DiskBus::Virtio => &["virtio_pci", "virtio_blk"],
        DiskBus::Sata => &["ahci", "sd_mod"],
        DiskBus::Nvme => &["nvme"],
    }
}

/// The drivers without which a guest has no network.
pub(crate) const fn network_drivers(card: NetworkCard) -> &'static [&'static str] {
    match card {
        NetworkCard::Virtio => &["virtio_pci", "virtio_net"],
        NetworkCard::E1000e => &["e1000e"],
    }
}

/// Whether the guest finds its disks before it has its root file system.
pub(crate) fn drives_disk(facts: &ServerFacts, bus: DiskBus) -> Drives {
    drives(facts, disk_drivers(bus), |place| matches!(place, DriverPlace::BuiltIn | DriverPlace::Initramfs))
}

/// Whether the guest finds its network card once it has its root file system.
pub(crate) fn drives_network(facts: &ServerFacts, card: NetworkCard) -> Drives {
    drives(facts, network_drivers(card), |place| place != DriverPlace::Absent)
}

fn drives(facts: &ServerFacts, drivers: &[&str], is_enough: impl Fn(DriverPlace) -> bool) -> Drives {
    let places: Vec<_> =
        drivers.iter().map(|driver| facts.drivers.get(*driver).and_then(Fact::known)).collect();
    if places.iter().flatten().any(|place| !is_enough(**place)) {
        Drives::No
    } else if places.iter().any(Option::is_none) {
        Drives::Unknown
    } else {
        Drives::Yes
    }
}

/// The interfaces that a machine can have too, in the kernel's order: each card once.
fn interfaces(facts: &ServerFacts) -> Vec<Interface> {
    let mut seen = BTreeSet::new();
    let all = facts.interfaces.known().into_iter().flatten();
    let fitting = all.filter(|one| one.mac.parse::<MacAddress>().is_ok_and(|mac| seen.insert(mac)));
    fitting.take(NICS_MAX).cloned().collect()
}

/// The interface by which a server is reached: the one with the default route, else one with an address.
fn primary(interfaces: &[Interface]) -> usize {
    let with_route = interfaces.iter().position(|one| one.gateway.is_some());
    let with_address = || interfaces.iter().position(|one| !one.addresses.is_empty());
    with_route.or_else(with_address).unwrap_or(0)
}

fn fixed_address(interface: &Interface) -> Option<Ipv4Addr> {
    fixed(interface).map(|(address, _)| address)
}

/// The first fixed IPv4 address of an interface, with its prefix.
fn fixed(interface: &Interface) -> Option<(Ipv4Addr, u8)> {
    interface.addresses.iter().find_map(|address| match address.address {
        IpAddr::V4(v4) if address.fixed => Some((v4, address.prefix)),
        _ => None,
    })
}

/// Whether the source's agent gives the interface another address in the copy when the machine orders it.
pub(crate) fn changes_address(facts: &ServerFacts, interface: &Interface) -> bool {
    facts.fits_copies && interface.configured_by.is_some() && fixed(interface).is_some()
}

/// The machine's network interfaces, and what the guest is to change about them. `attachment` and `mac`
/// are those of the one by which the server is reached; every other has a network of its own.
pub(crate) fn nics(
    derived: &Derived,
    attachment: Attachment,
    mac: MacAddress,
    model: lifeboat_compute::NicModel,
) -> (Vec<Nic>, Vec<CardChange>) {
    let interfaces = &derived.interfaces;
    if interfaces.is_empty() {
        return (vec![Nic { mac, model, attachment }], Vec::new());
    }
    let primary = primary(interfaces);
    let mut macs = BTreeSet::new();
    let nic = |(place, interface): (usize, &Interface)| {
        let mac = if place == primary { mac } else { interface.mac.parse().ok()? };
        let attachment = match &attachment {
            Attachment::Isolated { subnet, forwards } if place == primary => {
                let subnet = subnet.or_else(|| own_subnet(interface));
                Attachment::Isolated { subnet, forwards: forwards.clone() }
            }
            wire if place == primary => wire.clone(),
            _ => Attachment::Isolated { subnet: own_subnet(interface), forwards: Vec::new() },
        };
        let name = interface.name.parse::<InterfaceName>().ok();
        let change = CardChange { mac, name, address: address_change(interface, &attachment) };
        // The address that was set may be another interface's.
        macs.insert(mac).then_some((Nic { mac, model, attachment }, change))
    };
    let (nics, mut changes): (_, Vec<_>) = interfaces.iter().enumerate().filter_map(nic).unzip();
    changes.retain(|change| change.name.is_some() || change.address.is_some());
    (nics, changes)
}

/// What a fixed address of an interface becomes, where the network that it joins has another one for it.
fn address_change(interface: &Interface, attachment: &Attachment) -> Option<AddressChange> {
    let (from, own_prefix) = fixed(interface).filter(|_| interface.configured_by.is_some())?;
    let (to, prefix, gateway) = match attachment {
        Attachment::Shared { network, address } => {
            ((*address)?, network.subnet.prefix(), Some(network.gateway))
        }
        // Which addresses and which gateway are behind a bridge is not known here.
        Attachment::Bridge { address, .. } => ((*address)?, own_prefix, None),
        Attachment::Isolated { subnet: Some(subnet), .. } if subnet_of(interface).is_none() => {
            (subnet.guest, subnet.prefix, Some(subnet.gateway))
        }
        Attachment::Isolated { .. } => return None,
    };
    let gateway = match interface.gateway {
        Some(IpAddr::V4(own)) => gateway.filter(|gateway| *gateway != own).map(|gateway| (own, gateway)),
        _ => None,
    };
    let is_kept = to == from && prefix == own_prefix && gateway.is_none();
    (!is_kept).then_some(AddressChange { from, to, prefix, gateway })
}

/// The addresses of the network that an interface has for itself: the source's, else the usual ones.
fn own_subnet(interface: &Interface) -> Option<Subnet> {
    subnet_of(interface).or_else(|| fixed(interface).map(|_| USUAL_SUBNET))
}

/// The network that an interface sees, for one that has nothing else in it: with the gateway and the
/// address that the source has, so that a guest with a fixed address starts unmodified.
pub(crate) fn subnet_of(interface: &Interface) -> Option<Subnet> {
    interface.addresses.iter().find_map(|of| {
        let IpAddr::V4(guest) = of.address else { return None };
        let mask = u32::MAX.checked_shl(32_u32.checked_sub(u32::from(of.prefix))?)?;
        let network = Ipv4Addr::from_bits(guest.to_bits() & mask);
        let last = network.to_bits() | !mask;
        let is_host = |address: Ipv4Addr| {
            let bits = address.to_bits();
            bits & mask == network.to_bits() && bits != network.to_bits() && bits != last
        };
        let gateway = match interface.gateway {
            Some(IpAddr::V4(gateway)) if is_host(gateway) && gateway != guest => gateway,
            _ => {
                let free = (1..=2).map(|host| Ipv4Addr::from_bits(network.to_bits().wrapping_add(host)));
                free.into_iter().find(|address| *address != guest)?
            }
        };
        let fits = (8..=29).contains(&of.prefix) && is_host(guest) && !guest.is_link_local();
        fits.then_some(Subnet { network, prefix: of.prefix, gateway, guest })
    })
}

#[cfg(test)]
pub(crate) mod tests;
