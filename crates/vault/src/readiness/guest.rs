//! Whether the guest itself starts on another machine: firmware, drivers, console, network.

use lifeboat_api::{DiskBus, Finding, Firmware, NetworkCard, Probe};
use lifeboat_model::InterfaceName;
use lifeboat_wire::facts::{
    self, BootCode, Fact, Interface, Layer, NetworkConfiguration, OperatingSystem, ServerFacts,
};

use super::{Observed, bus_word, card_word, prevents, remark};
use crate::target::{
    Drives, NICS_MAX, changes_address, disk_drivers, drives_disk, drives_network, network_drivers, subnet_of,
};

const BUSES: [DiskBus; 3] = [DiskBus::Virtio, DiskBus::Sata, DiskBus::Nvme];
const CARDS: [NetworkCard; 2] = [NetworkCard::Virtio, NetworkCard::E1000e];
/// The machine's first serial port, which is all that it has.
const SERIAL: &str = "console=ttyS0";
/// The PCI slot of a machine's first network card; the others follow.
const NIC_SLOT_FIRST: usize = 2;

pub(super) fn judge(observed: &Observed<'_>, facts: &ServerFacts) -> Vec<Finding> {
    let mut findings = architecture(facts);
    findings.extend(firmware(observed, facts));
    findings.extend(boot_loader(observed, facts));
    findings.extend(encryption(facts));
    findings.extend(disk_driver(observed, facts));
    findings.extend(network_driver(observed, facts));
    findings.extend(serial_console(observed, facts));
    let interfaces = facts.interfaces.known().map(Vec::as_slice).unwrap_or_default();
    findings.extend(interfaces.iter().filter_map(|one| fixed_address(observed, facts, one)));
    findings.extend(names(facts, interfaces));
    if interfaces.len() > NICS_MAX {
        findings.push(remark(
            "interfaces_left_out",
            format!(
                "The source has {} network interfaces, of which the machine has the first {NICS_MAX}.",
                interfaces.len()
            ),
            "What needs the others finds none.",
            String::new(),
        ));
    }
    findings
}

/// How a distribution does things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Debian,
    RedHat,
    Suse,
    Arch,
    Other,
}

fn family(facts: &ServerFacts) -> Family {
    let Some(OperatingSystem { id, like, .. }) = facts.os.known() else { return Family::Other };
    let is = |words: &[&str]| {
        words.contains(&id.as_str()) || like.iter().any(|word| words.contains(&word.as_str()))
    };
    if is(&["debian", "ubuntu"]) {
        Family::Debian
    } else if is(&["rhel", "fedora", "centos", "amzn", "ol"]) {
        Family::RedHat
    } else if is(&["suse", "opensuse", "sles"]) {
        Family::Suse
    } else if is(&["arch"]) {
        Family::Arch
    } else {
        Family::Other
    }
}

fn architecture(facts: &ServerFacts) -> Vec<Finding> {
    if facts.architecture == "x86_64" {
        return Vec::new();
    }
    vec![prevents(
        "architecture_differs",
        format!("The source's processor is {}, the machine's x86_64.", facts.architecture),
        "Its system does not run there.",
        String::new(),
    )]
}

fn firmware(observed: &Observed<'_>, facts: &ServerFacts) -> Vec<Finding> {
    let name = &observed.server.name;
    let (source, word, secure_boot, fallback) = match facts.firmware.known() {
        Some(facts::Firmware::Bios) => (Firmware::Bios, "bios", None, None),
        Some(facts::Firmware::Uefi { secure_boot, fallback_loader }) => {
            (Firmware::Uefi, "uefi", secure_boot.known(), fallback_loader.known())
        }
        None => return Vec::new(),
    };
    if source != observed.target.firmware {
        return vec![prevents(
            "firmware_differs",
            format!("The source boots by {} and the machine does not.", word.to_uppercase()),
            "Its boot loader is not found.",
            format!("lifeboat target set {name} --firmware {word}."),
        )];
    }
    let mut findings = Vec::new();
    if fallback == Some(&false) {
        let command = match family(facts) {
            Family::Debian => "grub-install --target=x86_64-efi --force-extra-removable",
            Family::RedHat => {
                "dnf reinstall shim-x64, and if EFI/BOOT is still missing: mkdir -p /boot/efi/EFI/BOOT && cp /boot/efi/EFI/*/shimx64.efi /boot/efi/EFI/BOOT/BOOTX64.EFI && cp /boot/efi/EFI/*/grubx64.efi /boot/efi/EFI/BOOT/"
            }
            Family::Suse => "shim-install --removable",
            Family::Arch | Family::Other => {
                "grub-install --target=x86_64-efi --removable (or bootctl install)"
            }
        };
        findings.push(prevents(
            "fallback_loader_missing",
            "The EFI system partition has no EFI/BOOT/BOOTX64.EFI.".into(),
            "A new machine does not have the variables of the source's firmware, and starts that file alone.",
            format!("On the source: {command}."),
        ));
    }
    if secure_boot == Some(&true) {
        findings.push(remark(
            "secure_boot_off",
            "The source checks signatures when it boots (Secure Boot) and the machine does not.".into(),
            "It boots all the same; what is bound to it, such as keys in a TPM, is not there.",
            String::new(),
        ));
    }
    findings
}

/// Under BIOS the first bytes of a disk start everything.
fn boot_loader(observed: &Observed<'_>, facts: &ServerFacts) -> Option<Finding> {
    if observed.target.firmware != Firmware::Bios || facts.firmware.known() != Some(&facts::Firmware::Bios) {
        return None;
    }
    let mut protected = facts.disks.iter().filter(|disk| disk.path.is_some()).peekable();
    let first = protected.peek()?.name.clone();
    protected.all(|disk| disk.boot_code == Fact::Known(BootCode::None)).then(|| {
        prevents(
            "boot_loader_missing",
            "No protected disk has a boot loader in its first sector.".into(),
            "The machine's BIOS finds nothing to start.",
            format!("Protect the disk that the source boots from, or put a boot loader on this one: grub-install /dev/{first}."),
        )
    })
}

fn encryption(facts: &ServerFacts) -> Option<Finding> {
    let root = crate::facts::root(facts)?;
    root.layers.contains(&Layer::Encryption).then(|| {
        remark(
            "root_encrypted",
            "The root file system is encrypted.".into(),
            "The start waits for its passphrase, unless a key for it comes with the copy; a TPM's does not.",
            "Have the passphrase at the recovery site. It is asked for on the machine's console.".into(),
        )
    })
}

fn disk_driver(observed: &Observed<'_>, facts: &ServerFacts) -> Option<Finding> {
    let (bus, name) = (observed.target.disk_bus, &observed.server.name);
    let drivers = disk_drivers(bus);
    let has = |wanted| BUSES.into_iter().find(|bus| drives_disk(facts, *bus) == wanted);
    if drives_disk(facts, bus) != Drives::No {
        return None;
    }
    let what =
        format!("The initramfs lacks {}, which disks on {} need.", drivers.join(" or "), bus_word(bus));
    let add = add_to_initramfs(facts, drivers);
    let why = "The guest does not find its root file system, and stops in the initramfs.";
    let next_step = match has(Drives::Yes) {
        Some(other) => {
            format!("lifeboat target set {name} --disk-bus {}. Or, on the source: {add}.", bus_word(other))
        }
        None => format!("On the source: {add}."),
    };
    Some(prevents("disk_driver_missing", what, why, next_step))
}

/// The command that brings drivers into the initramfs.
fn add_to_initramfs(facts: &ServerFacts, drivers: &[&str]) -> String {
    let words = drivers.join(" ");
    match family(facts) {
        Family::Debian => {
            format!("printf '%s\\n' {words} >> /etc/initramfs-tools/modules && update-initramfs -u -k all")
        }
        Family::RedHat | Family::Suse => format!(
            "echo 'add_drivers+=\" {words} \"' > /etc/dracut.conf.d/lifeboat.conf && dracut --force --regenerate-all"
        ),
        Family::Arch => format!("add {words} to MODULES in /etc/mkinitcpio.conf, then mkinitcpio -P"),
        Family::Other => format!("add the drivers {words} to the initramfs and make it anew"),
    }
}

fn network_driver(observed: &Observed<'_>, facts: &ServerFacts) -> Option<Finding> {
    let (card, name) = (observed.target.network_card, &observed.server.name);
    if drives_network(facts, card) != Drives::No {
        return None;
    }
    let drivers = network_drivers(card).join(" or ");
    let other = CARDS.into_iter().find(|card| drives_network(facts, *card) == Drives::Yes);
    let next_step = match other {
        Some(other) => format!("lifeboat target set {name} --network-card {}.", card_word(other)),
        None => match family(facts) {
            Family::Debian => "On the source install a kernel with all drivers: apt install linux-image-amd64 (Ubuntu: linux-modules-extra-$(uname -r)).".into(),
            Family::RedHat => "On the source: dnf install kernel-modules-extra.".into(),
            _ => "On the source install a kernel that has the driver.".into(),
        },
    };
    Some(prevents(
        "network_driver_missing",
        format!("The source's kernel has no {drivers}, which the machine's network card needs."),
        "The machine starts without a network.",
        next_step,
    ))
}

fn serial_console(observed: &Observed<'_>, facts: &ServerFacts) -> Option<Finding> {
    let line = facts.kernel_command_line.known()?;
    let is_there = line
        .split_whitespace()
        .any(|word| word.strip_prefix(SERIAL).is_some_and(|rest| rest.is_empty() || rest.starts_with(',')));
    let probes = &observed.target.probes;
    let by_console = probes.iter().any(|probe| matches!(probe, Probe::Console { .. }));
    if is_there || !(probes.is_empty() || by_console) {
        return None;
    }
    let why = if by_console {
        "What shows that the machine is up is a text on that console, which does not come."
    } else {
        "That the machine is up shows by an SSH banner on port 22 alone, and a report has no console text."
    };
    let add = match family(facts) {
        Family::Debian => {
            "add console=tty0 console=ttyS0,115200 to GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub"
        }
        Family::RedHat => "grubby --update-kernel=ALL --args='console=tty0 console=ttyS0,115200'",
        Family::Suse | Family::Arch | Family::Other => {
            "add console=tty0 console=ttyS0,115200 to GRUB_CMDLINE_LINUX in /etc/default/grub, then grub-mkconfig -o /boot/grub/grub.cfg (SUSE: grub2-mkconfig -o /boot/grub2/grub.cfg)"
        }
    };
    Some(remark(
        "no_serial_console",
        "The kernel's command line has no console=ttyS0.".into(),
        why,
        format!("On the source: {add}."),
    ))
}

fn fixed_address(observed: &Observed<'_>, facts: &ServerFacts, interface: &Interface) -> Option<Finding> {
    let fixed: Vec<_> = interface.addresses.iter().filter(|of| of.fixed && of.address.is_ipv4()).collect();
    let told: Vec<_> = fixed.iter().map(|of| format!("{}/{}", of.address, of.prefix)).collect();
    let (name, told) = (&interface.name, told.join(", "));
    if fixed.is_empty() {
        return None;
    }
    let (is_changed, is_matched) = (changes_address(facts, interface), subnet_of(interface).is_some());
    if !is_matched && !is_changed {
        let update = if facts.fits_copies {
            "Let"
        } else {
            "Update the agent, which then changes the address in copies. Or let"
        };
        return Some(remark(
            "address_not_matched",
            format!("{name} has the fixed address {told}, for which no network can be made in a drill."),
            "The machine of a drill is not reached under it; probes over the network fail.",
            format!("{update} the console decide: lifeboat target set with --probe console=login:."),
        ));
    }
    let server = &observed.server.name;
    let next_step = match &observed.target.bridge {
        Some(bridge) if is_changed => format!(
            "See that {told} belongs to the network of {bridge}, or say what it becomes there: lifeboat target set {server} --address ADDRESS."
        ),
        Some(bridge) => format!(
            "See that {told} belongs to the network of {bridge}, or change it inside after the failover."
        ),
        None => format!(
            "For a failover name the network that has this address: lifeboat target set {server} --network BRIDGE."
        ),
    };
    let why = match (is_changed, is_matched) {
        (true, true) => {
            "A network of the machine's own has this address and its gateway; in a made network that has other addresses its agent changes it."
        }
        (true, false) => {
            "No network of the machine's own can have it: the copy's agent changes it, as in a made network that has other addresses."
        }
        (false, _) => {
            "A drill gives the machine a network of its own with this address and its gateway, so that it starts unmodified; a failover keeps the address."
        }
    };
    Some(remark("fixed_address", format!("{name} has the fixed address {told}."), why, next_step))
}

/// A name that tells where a card sits changes with the machine. The card's address stays.
fn names(facts: &ServerFacts, interfaces: &[Interface]) -> Option<Finding> {
    let is_old = facts.kernel_command_line.known().is_some_and(|line| line.contains("net.ifnames=0"));
    let changed: Vec<_> = interfaces
        .iter()
        .take(NICS_MAX)
        .enumerate()
        .filter(|(place, one)| one.named && !is_old && !keeps_its_name(one, *place))
        // The agent in the copy gives the card its name.
        .filter(|(_, one)| !facts.fits_copies || one.name.parse::<InterfaceName>().is_err())
        .map(|(_, one)| one)
        .collect();
    let first = changed.first()?;
    let told: Vec<_> = changed.iter().map(|one| one.name.as_str()).collect();
    let file = first.configured_by.map_or("its configuration", |by| match by {
        NetworkConfiguration::Ifupdown => "/etc/network/interfaces",
        NetworkConfiguration::Networkd => "systemd-networkd's files",
        NetworkConfiguration::Netplan => "netplan's files",
        NetworkConfiguration::NetworkManager => "NetworkManager's connections",
        NetworkConfiguration::Ifcfg => "the ifcfg files",
    });
    let (name, mac) = (&first.name, &first.mac);
    let renew = match family(facts) {
        Family::Debian => "update-initramfs -u",
        Family::RedHat | Family::Suse => "dracut --force",
        Family::Arch => "mkinitcpio -P",
        Family::Other => "make the initramfs anew",
    };
    let update = if facts.fits_copies {
        "Bind"
    } else {
        "Update the agent, which then names the cards of copies. Or bind"
    };
    Some(remark(
        "interface_names",
        format!(
            "{file} names {}, and the machine's cards sit elsewhere, so that they are named otherwise.",
            told.join(", ")
        ),
        "The machine starts without its network configuration.",
        format!(
            "{update} the name to the card's address, which the machine keeps; on the source: printf '[Match]\\nMACAddress={mac}\\n[Link]\\nName={name}\\n' > /etc/systemd/network/10-{name}.link && {renew}."
        ),
    ))
}

/// Whether the machine's card at this place gets the same name: the kernel's own, one made of the card's
/// address, or one that happens to tell the same place.
fn keeps_its_name(interface: &Interface, place: usize) -> bool {
    let name = &interface.name;
    let is_kernels = name.strip_prefix("eth").is_some_and(|number| number.parse::<u32>().is_ok());
    let by_address = name.strip_prefix("enx").is_some_and(|mac| mac == interface.mac.replace(':', ""));
    is_kernels || by_address || *name == format!("enp0s{}", NIC_SLOT_FIRST + place)
}
