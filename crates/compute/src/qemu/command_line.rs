//! From a spec to QEMU's arguments. No input or output.

use lifeboat_model::{DiskNumber, SMBIOS_MANUFACTURER, SMBIOS_PRODUCT};
use serde_json::{Value, json};

use super::taps::tap_name;
use crate::directory::{CONSOLE, CONSOLE_SOCKET, QMP, VARIABLES};
use crate::network::{Attachment, Forward, NicModel, Subnet};
use crate::places::{Function, NICS_MAX, Places, SLOT_NIC_FIRST, SLOT_RANDOM, SLOT_VGA, SataPort};
use crate::spec::{DiskAddress, DiskBus, DiskFormat, Firmware, MachineDisk, MachineSpec};

/// What the command line needs beside the spec.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// The argument by which the process is known.
    pub marker: String,
    /// Arguments that choose who executes instructions.
    pub acceleration: &'a [&'a str],
    /// Whether QEMU can confine itself.
    pub sandbox: bool,
    /// OVMF's code.
    pub ovmf_code: &'a str,
    /// The forwards of all interfaces in their order, with the host ports that they got.
    pub forwards: &'a [Forward],
    /// How long a guest waits for an NBD server.
    pub nbd_wait_seconds: u32,
}

/// Confines QEMU: no new programs, no other users, no calls that nobody uses any longer.
pub(crate) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The arguments for a machine whose disks are at these addresses now, or one clause that says why QEMU has none for this spec.
pub(crate) fn arguments(
    spec: &MachineSpec,
    disks: &[MachineDisk],
    around: &Surroundings<'_>,
) -> Result<Vec<String>, String> {
    let mut line = Line(Vec::new());
    line.machine(spec, around);
    line.firmware(spec.firmware, around);
    line.identity(spec);
    line.disks(disks, around)?;
    line.nics(spec, around)?;
    Ok(line.0)
}

/// QEMU's name for a disk's device.
pub(crate) fn device_of(disk: DiskNumber) -> String {
    format!("disk{disk}")
}

/// QEMU's name for what a disk's device reads and writes.
pub(crate) fn source_node(disk: DiskNumber) -> String {
    format!("disk{disk}-source")
}

/// Opens what is at the address, under this name.
pub(crate) fn block_node(node: &str, address: &DiskAddress, nbd_wait_seconds: u32) -> Value {
    match address {
        DiskAddress::NbdUnix { socket, export } => json!({
            "driver": "nbd",
            "node-name": node,
            "server": { "type": "unix", "path": socket },
            "export": export,
            "reconnect-delay": nbd_wait_seconds,
            "discard": "unmap",
        }),
        DiskAddress::File { path, format } => json!({
            "driver": match format { DiskFormat::Raw => "raw", DiskFormat::Qcow2 => "qcow2" },
            "node-name": node,
            "discard": "unmap",
            "file": { "driver": "file", "filename": path, "discard": "unmap" },
        }),
    }
}

/// The value of `-netdev` for a network that a machine has for itself, with these ports of its host's loopback.
pub(crate) fn user_network(id: &str, subnet: Option<Subnet>, forwards: &[Forward]) -> String {
    let mut wire = format!("user,id={id},restrict=on,ipv6=off");
    if let Some(subnet) = subnet {
        wire += &format!(
            ",net={}/{},host={},dhcpstart={},dns={}",
            subnet.network,
            subnet.prefix,
            subnet.gateway,
            subnet.guest,
            subnet.spare()
        );
    }
    let guest = subnet.map(|subnet| subnet.guest.to_string()).unwrap_or_default();
    for Forward { host_port, guest_port } in forwards {
        wire += &format!(",hostfwd=tcp:127.0.0.1:{host_port}-{guest}:{guest_port}");
    }
    wire
}

struct Line(Vec<String>);

impl Line {
    fn add(&mut self, option: &str, value: impl Into<String>) {
        self.0.extend([option.to_owned(), value.into()]);
    }

    fn json(&mut self, option: &str, value: &Value) {
        self.add(option, value.to_string());
    }

    fn machine(&mut self, spec: &MachineSpec, around: &Surroundings<'_>) {
        self.0.extend(["-no-user-config", "-nodefaults", "-S"].map(String::from));
        self.add("-name", around.marker.clone());
        let pflash =
            if spec.firmware == Firmware::Uefi { ",pflash0=uefi-code,pflash1=uefi-variables" } else { "" };
        self.add("-machine", format!("q35,usb=off{pflash}"));
        self.0.extend(around.acceleration.iter().map(|argument| (*argument).to_owned()));
        self.add("-smp", format!("cpus={0},sockets=1,cores={0},threads=1", spec.cpus));
        self.add("-m", format!("size={}M", spec.memory_mib));
        self.add("-rtc", "base=utc");
        // A guest that shuts down leaves its process, so that its end can be told from a crash.
        self.add("-action", "shutdown=pause,reboot=reset");
        self.add("-boot", "strict=on");
        if around.sandbox {
            self.add("-sandbox", SANDBOX);
        }
        self.add("-chardev", format!("socket,id=qmp,path={QMP},server=on,wait=off"));
        self.add("-mon", "chardev=qmp,mode=control");
        self.add(
            "-chardev",
            format!(
                "socket,id=console,path={CONSOLE_SOCKET},server=on,wait=off,logfile={CONSOLE},logappend=on"
            ),
        );
        self.add("-serial", "chardev:console");
        self.add("-display", "none");
        self.json("-device", &json!({ "driver": "VGA", "id": "vga", "addr": pci(SLOT_VGA, 0) }));
        self.json(
            "-object",
            &json!({ "qom-type": "rng-random", "id": "random", "filename": "/dev/urandom" }),
        );
        self.json(
            "-device",
            &json!({ "driver": "virtio-rng-pci", "rng": "random", "addr": pci(SLOT_RANDOM, 0) }),
        );
    }

    fn firmware(&mut self, firmware: Firmware, around: &Surroundings<'_>) {
        if firmware == Firmware::Bios {
            return;
        }
        let node = |name: &str, read_only: bool, file: &str| {
            json!({
                "driver": "raw",
                "node-name": name,
                "read-only": read_only,
                "file": { "driver": "file", "filename": file },
            })
        };
        self.json("-blockdev", &node("uefi-code", true, around.ovmf_code));
        self.json("-blockdev", &node("uefi-variables", false, VARIABLES));
    }

    fn identity(&mut self, spec: &MachineSpec) {
        let number = spec.id.number();
        let (high, low) = (number >> 48, number & 0xffff_ffff_ffff);
        self.add("-uuid", format!("4c6f6966-{high:04x}-4000-8000-{low:012x}"));
        self.add(
            "-smbios",
            format!(
                "type=1,manufacturer={SMBIOS_MANUFACTURER},product={SMBIOS_PRODUCT},serial={}",
                spec.identity.server
            ),
        );
        self.add("-smbios", format!("type=11,value={}", spec.identity));
        for change in &spec.changes {
            self.add("-smbios", format!("type=11,value={change}"));
        }
    }

    fn disks(&mut self, disks: &[MachineDisk], around: &Surroundings<'_>) -> Result<(), String> {
        let mut places = Places::default();
        for (order, disk) in disks.iter().enumerate() {
            let node = source_node(disk.number);
            self.json("-blockdev", &block_node(&node, &disk.source, around.nbd_wait_seconds));
            let (driver, place) = match disk.bus {
                DiskBus::Virtio => ("virtio-blk-pci", function(places.function()?)),
                DiskBus::Nvme => ("nvme", function(places.function()?)),
                DiskBus::Sata => ("ide-hd", self.sata_port(places.sata()?)),
            };
            let mut device = json!({
                "driver": driver,
                "id": device_of(disk.number),
                "drive": node,
                "serial": format!("lifeboat-{}", disk.number),
                "bootindex": order,
            });
            merge(&mut device, place);
            self.json("-device", &device);
        }
        Ok(())
    }

    /// The port, on a controller that is added where it is new.
    fn sata_port(&mut self, SataPort { controller, port, new_controller }: SataPort) -> Value {
        if controller == 0 {
            // The chipset's own.
            return json!({ "bus": format!("ide.{port}") });
        }
        let name = format!("sata{controller}");
        if let Some(place) = new_controller {
            let mut device = json!({ "driver": "ich9-ahci", "id": name });
            merge(&mut device, function(place));
            self.json("-device", &device);
        }
        json!({ "bus": format!("{name}.{port}") })
    }

    fn nics(&mut self, spec: &MachineSpec, around: &Surroundings<'_>) -> Result<(), String> {
        let nics = &spec.nics;
        if nics.len() > NICS_MAX {
            return Err(format!("{} network interfaces are more than {NICS_MAX}", nics.len()));
        }
        let mut forwards = around.forwards.iter();
        for (nic, slot) in nics.iter().zip(SLOT_NIC_FIRST..) {
            let place = usize::from(slot - SLOT_NIC_FIRST);
            let id = format!("net{place}");
            let wire = match &nic.attachment {
                Attachment::Isolated { subnet, forwards: wanted } => {
                    let forwards: Vec<_> = forwards.by_ref().take(wanted.len()).copied().collect();
                    user_network(&id, *subnet, &forwards)
                }
                Attachment::Bridge { .. } | Attachment::Shared { .. } => {
                    format!("tap,id={id},ifname={},script=no,downscript=no", tap_name(spec.id, place))
                }
            };
            self.add("-netdev", wire);
            let driver = match nic.model {
                NicModel::Virtio => "virtio-net-pci",
                NicModel::E1000e => "e1000e",
            };
            self.json(
                "-device",
                &json!({ "driver": driver, "id": format!("nic{place}"), "netdev": id, "mac": nic.mac, "addr": pci(slot, 0) }),
            );
        }
        Ok(())
    }
}

fn function(Function { slot, function }: Function) -> Value {
    json!({ "addr": pci(slot, function), "multifunction": function == 0 })
}

fn pci(slot: u8, function: usize) -> String {
    format!("0x{slot:02x}.{function}")
}

fn merge(device: &mut Value, more: Value) {
    if let (Value::Object(device), Value::Object(more)) = (device, more) {
        device.extend(more);
    }
}
