//! From a spec to libvirt's XML for a domain, and back. No input or output.

use std::io;

use lifeboat_model::{DiskNumber, MachineId, SMBIOS_MANUFACTURER, SMBIOS_PRODUCT, VaultId};
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer};

use super::settings::NbdOverTls;
use crate::network::{Attachment, Forward, NicModel};
use crate::places::{Function, NICS_MAX, Places, SLOT_NIC_FIRST, SLOT_RANDOM, SLOT_VGA, SataPort};
use crate::qemu::command_line::user_network;
use crate::spec::{DiskAddress, DiskBus, DiskFormat, Firmware, MachineDisk, MachineSpec};

/// The name space of what Lifeboat keeps in a domain's metadata.
pub(crate) const METADATA: &str = "urn:lifeboat:machine:1";
const QEMU_NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// What a domain needs beside the spec.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// Whose it is.
    pub vault: VaultId,
    /// Its name at libvirt.
    pub name: &'a str,
    /// Whether the processor executes the guest's instructions.
    pub kvm: bool,
    /// The file of its serial port, on libvirt's host.
    pub console: &'a str,
    /// The forwards of all interfaces in their order, with the host ports that they got.
    pub forwards: &'a [Forward],
    /// Where NBD is spoken; none if libvirt's host has the Unix sockets that the spec names.
    pub nbd: Option<&'a NbdOverTls>,
    /// User and group that QEMU runs as; libvirt's choice if none.
    pub owner: Option<(u32, u32)>,
}

/// The name of a machine's domain.
pub(crate) fn name_of(vault: VaultId, machine: MachineId) -> String {
    format!("{}{machine}", prefix_of(vault))
}

/// How the names of all domains of a vault begin.
pub(crate) fn prefix_of(vault: VaultId) -> String {
    format!("lifeboat-{vault}-")
}

/// The UUID of a machine's domain. Two vaults may draw the same id for a machine of the same host.
fn uuid(vault: VaultId, machine: MachineId) -> String {
    let (vault, machine) = (vault.number(), machine.number());
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        vault & 0xffff_ffff,
        machine >> 48,
        vault >> 32 & 0xfff,
        vault >> 44 & 0xfff,
        machine & 0xffff_ffff_ffff
    )
}

/// libvirt's name for a disk.
pub(crate) fn target_of(disks: &[MachineDisk], number: DiskNumber) -> Option<String> {
    let disk = disks.iter().find(|disk| disk.number == number)?;
    let place = disks.iter().take_while(|other| other.number != number).filter(|other| other.bus == disk.bus);
    Some(target_name(disk.bus, place.count()))
}

/// `vda`, …, `vdz`, `vdaa`, …
fn target_name(bus: DiskBus, place: usize) -> String {
    let mut letters = String::new();
    let mut rest = place + 1;
    while rest > 0 {
        rest -= 1;
        letters.insert(0, char::from(b'a' + u8::try_from(rest % 26).unwrap_or(0)));
        rest /= 26;
    }
    format!("{}{letters}", if bus == DiskBus::Sata { "sd" } else { "vd" })
}

/// The domain of a machine whose disks are at these addresses now, or one clause that says why libvirt has none
/// for this spec.
pub(crate) fn domain(
    spec: &MachineSpec,
    disks: &[MachineDisk],
    around: &Surroundings<'_>,
) -> Result<String, String> {
    let mut xml = Xml(Writer::new_with_indent(Vec::new(), b' ', 2));
    xml.domain(spec, disks, around).map_err(|error| error.to_string())?;
    String::from_utf8(xml.0.into_inner()).map_err(|error| error.to_string())
}

/// The spec that a domain's metadata holds.
pub(crate) fn spec_in(metadata: &str) -> Option<MachineSpec> {
    let mut reader = Reader::from_str(metadata);
    let mut text = String::new();
    loop {
        match reader.read_event().ok()? {
            Event::Text(part) => text += &part.decode().ok()?,
            Event::GeneralRef(reference) => match reference.resolve_char_ref().ok()? {
                Some(character) => text.push(character),
                None => text += quick_xml::escape::resolve_predefined_entity(&reference.decode().ok()?)?,
            },
            Event::Eof => break,
            _ => {}
        }
    }
    serde_json::from_str(text.trim()).ok()
}

type Attributes<'a> = &'a [(&'a str, &'a str)];

struct Xml(Writer<Vec<u8>>);

impl Xml {
    fn open(&mut self, name: &str, attributes: Attributes<'_>) -> io::Result<()> {
        self.0.write_event(Event::Start(start(name, attributes)))
    }

    fn close(&mut self, name: &str) -> io::Result<()> {
        self.0.write_event(Event::End(BytesEnd::new(name)))
    }

    fn empty(&mut self, name: &str, attributes: Attributes<'_>) -> io::Result<()> {
        self.0.write_event(Event::Empty(start(name, attributes)))
    }

    fn text(&mut self, name: &str, attributes: Attributes<'_>, text: &str) -> io::Result<()> {
        self.open(name, attributes)?;
        self.0.write_event(Event::Text(BytesText::new(text)))?;
        self.close(name)
    }

    fn domain(
        &mut self,
        spec: &MachineSpec,
        disks: &[MachineDisk],
        around: &Surroundings<'_>,
    ) -> io::Result<()> {
        let kind = if around.kvm { "kvm" } else { "qemu" };
        self.open("domain", &[("type", kind), ("xmlns:qemu", QEMU_NAMESPACE)])?;
        self.text("name", &[], around.name)?;
        self.text("uuid", &[], &uuid(around.vault, spec.id))?;
        if !spec.name.is_empty() {
            self.text("title", &[], &spec.name)?;
        }
        self.open("metadata", &[])?;
        let kept = serde_json::to_string(spec).map_err(io::Error::other)?;
        self.text("lifeboat:machine", &[("xmlns:lifeboat", METADATA)], &kept)?;
        self.close("metadata")?;
        self.processor(spec, around)?;
        self.firmware(spec.firmware)?;
        self.identity(spec)?;
        self.empty("clock", &[("offset", "utc")])?;
        self.text("on_poweroff", &[], "destroy")?;
        self.text("on_reboot", &[], "restart")?;
        self.text("on_crash", &[], "destroy")?;
        self.open("devices", &[])?;
        self.disks(disks, around)?;
        self.bridged_nics(spec)?;
        self.other_devices(around)?;
        self.close("devices")?;
        if let Some((user, group)) = around.owner {
            // The sockets of volumes are the vault's alone, so its machines run as its user.
            self.open("seclabel", &[("type", "static"), ("model", "dac"), ("relabel", "yes")])?;
            self.text("label", &[], &format!("+{user}:+{group}"))?;
            self.close("seclabel")?;
        }
        self.isolated_nics(spec, around)?;
        self.close("domain")
    }

    fn processor(&mut self, spec: &MachineSpec, around: &Surroundings<'_>) -> io::Result<()> {
        let cpus = spec.cpus.to_string();
        self.text("memory", &[("unit", "MiB")], &spec.memory_mib.to_string())?;
        self.text("vcpu", &[], &cpus)?;
        let mode = if around.kvm { "host-passthrough" } else { "maximum" };
        self.open("cpu", &[("mode", mode)])?;
        self.empty("topology", &[("sockets", "1"), ("cores", &cpus), ("threads", "1")])?;
        self.close("cpu")?;
        self.open("features", &[])?;
        self.empty("acpi", &[])?;
        self.empty("apic", &[])?;
        self.close("features")
    }

    fn firmware(&mut self, firmware: Firmware) -> io::Result<()> {
        match firmware {
            Firmware::Bios => self.open("os", &[])?,
            // libvirt's host knows where its firmware is.
            Firmware::Uefi => self.open("os", &[("firmware", "efi")])?,
        }
        self.text("type", &[("arch", "x86_64"), ("machine", "q35")], "hvm")?;
        if firmware == Firmware::Uefi {
            self.open("firmware", &[])?;
            self.empty("feature", &[("name", "secure-boot"), ("enabled", "no")])?;
            self.close("firmware")?;
        }
        self.empty("smbios", &[("mode", "sysinfo")])?;
        self.close("os")
    }

    fn identity(&mut self, spec: &MachineSpec) -> io::Result<()> {
        self.open("sysinfo", &[("type", "smbios")])?;
        self.open("system", &[])?;
        self.text("entry", &[("name", "manufacturer")], SMBIOS_MANUFACTURER)?;
        self.text("entry", &[("name", "product")], SMBIOS_PRODUCT)?;
        self.text("entry", &[("name", "serial")], &spec.identity.server.to_string())?;
        self.close("system")?;
        self.open("oemStrings", &[])?;
        self.text("entry", &[], &spec.identity.to_string())?;
        for change in &spec.changes {
            self.text("entry", &[], &change.to_string())?;
        }
        self.close("oemStrings")?;
        self.close("sysinfo")
    }

    fn disks(&mut self, disks: &[MachineDisk], around: &Surroundings<'_>) -> io::Result<()> {
        let mut places = Places::default();
        for (order, disk) in (1..).zip(disks) {
            let source = Source::of(disk, around).map_err(io::Error::other)?;
            self.open("disk", &[("type", source.kind()), ("device", "disk")])?;
            // A disk whose server is away stops the guest instead of giving it an error.
            let (format, stop) = (source.format(), "stop");
            self.empty(
                "driver",
                &[
                    ("name", "qemu"),
                    ("type", format),
                    ("discard", "unmap"),
                    ("error_policy", stop),
                    ("rerror_policy", stop),
                ],
            )?;
            self.source(&source)?;
            let target = target_of(disks, disk.number).unwrap_or_default();
            let bus = match disk.bus {
                DiskBus::Virtio => "virtio",
                DiskBus::Sata => "sata",
                DiskBus::Nvme => {
                    let why = "libvirt gives guests no NVMe disks; attach its disks by virtio or SATA";
                    return Err(io::Error::other(why));
                }
            };
            self.empty("target", &[("dev", &target), ("bus", bus)])?;
            self.text("serial", &[], &format!("lifeboat-{}", disk.number))?;
            self.empty("boot", &[("order", &order.to_string())])?;
            if disk.bus == DiskBus::Sata {
                let SataPort { controller, port, new_controller } =
                    places.sata().map_err(io::Error::other)?;
                let (controller, port) = (controller.to_string(), port.to_string());
                let place = [("type", "drive"), ("controller", &controller), ("bus", "0"), ("unit", &port)];
                self.empty("address", &place)?;
                self.close("disk")?;
                if let Some(place) = new_controller {
                    self.open("controller", &[("type", "sata"), ("index", &controller)])?;
                    self.function(place)?;
                    self.close("controller")?;
                }
            } else {
                self.function(places.function().map_err(io::Error::other)?)?;
                self.close("disk")?;
            }
        }
        Ok(())
    }

    fn function(&mut self, Function { slot, function }: Function) -> io::Result<()> {
        let multifunction = if function == 0 { "on" } else { "off" };
        self.empty(
            "address",
            &[
                ("type", "pci"),
                ("domain", "0x0000"),
                ("bus", "0x00"),
                ("slot", &format!("0x{slot:02x}")),
                ("function", &format!("0x{function:x}")),
                ("multifunction", multifunction),
            ],
        )
    }

    fn slot(&mut self, slot: u8) -> io::Result<()> {
        let slot = format!("0x{slot:02x}");
        let place =
            [("type", "pci"), ("domain", "0x0000"), ("bus", "0x00"), ("slot", &slot), ("function", "0x0")];
        self.empty("address", &place)
    }

    /// Interfaces on a bridge, whose devices on the host libvirt makes and removes.
    fn bridged_nics(&mut self, spec: &MachineSpec) -> io::Result<()> {
        for (nic, slot) in spec.nics.iter().zip(SLOT_NIC_FIRST..) {
            let Attachment::Bridge { name, .. } = &nic.attachment else { continue };
            self.open("interface", &[("type", "bridge")])?;
            self.empty("mac", &[("address", &nic.mac.to_string())])?;
            self.empty("source", &[("bridge", name)])?;
            let model = match nic.model {
                NicModel::Virtio => "virtio",
                NicModel::E1000e => "e1000e",
            };
            self.empty("model", &[("type", model)])?;
            self.slot(slot)?;
            self.close("interface")?;
        }
        Ok(())
    }

    fn other_devices(&mut self, around: &Surroundings<'_>) -> io::Result<()> {
        self.open("serial", &[("type", "file")])?;
        self.empty("source", &[("path", around.console), ("append", "on")])?;
        self.empty("target", &[("type", "isa-serial"), ("port", "0")])?;
        self.close("serial")?;
        self.open("video", &[])?;
        self.empty("model", &[("type", "vga")])?;
        self.slot(SLOT_VGA)?;
        self.close("video")?;
        self.open("rng", &[("model", "virtio")])?;
        self.text("backend", &[("model", "random")], "/dev/urandom")?;
        self.slot(SLOT_RANDOM)?;
        self.close("rng")?;
        self.empty("controller", &[("type", "usb"), ("model", "none")])?;
        self.empty("memballoon", &[("model", "none")])
    }

    /// Interfaces on a network of the machine's own. libvirt has such networks too, but only open ones: what
    /// keeps every packet in, and what leads the vault's probes to the guest, QEMU must be told itself.
    fn isolated_nics(&mut self, spec: &MachineSpec, around: &Surroundings<'_>) -> io::Result<()> {
        if spec.nics.len() > NICS_MAX {
            let why = format!("{} network interfaces are more than {NICS_MAX}", spec.nics.len());
            return Err(io::Error::other(why));
        }
        let mut forwards = around.forwards.iter();
        let mut arguments = Vec::new();
        for (place, nic) in spec.nics.iter().enumerate() {
            let Attachment::Isolated { subnet, forwards: wanted } = &nic.attachment else { continue };
            let id = format!("lifeboat-net{place}");
            let forwards: Vec<_> = forwards.by_ref().take(wanted.len()).copied().collect();
            arguments.extend(["-netdev".to_owned(), user_network(&id, *subnet, &forwards)]);
            let driver = match nic.model {
                NicModel::Virtio => "virtio-net-pci",
                NicModel::E1000e => "e1000e",
            };
            let slot = usize::from(SLOT_NIC_FIRST) + place;
            arguments.push("-device".to_owned());
            arguments.push(format!(
                "{driver},id=lifeboat-nic{place},netdev={id},mac={},bus=pcie.0,addr=0x{slot:02x}",
                nic.mac
            ));
        }
        if arguments.is_empty() {
            return Ok(());
        }
        self.open("qemu:commandline", &[])?;
        for argument in &arguments {
            self.empty("qemu:arg", &[("value", argument)])?;
        }
        self.close("qemu:commandline")
    }

    fn source(&mut self, source: &Source<'_>) -> io::Result<()> {
        match *source {
            Source::File { path, .. } => self.empty("source", &[("file", path)]),
            Source::Unix { socket, export } => {
                self.open("source", &[("protocol", "nbd"), ("name", export)])?;
                self.empty("host", &[("transport", "unix"), ("socket", socket)])?;
                self.close("source")
            }
            Source::Tls { server, export } => {
                self.open("source", &[("protocol", "nbd"), ("name", export), ("tls", "yes")])?;
                self.empty("host", &[("name", &server.host), ("port", &server.port.to_string())])?;
                self.close("source")
            }
        }
    }
}

/// Where a disk's content is, as libvirt says it.
enum Source<'a> {
    File { path: &'a str, format: &'static str },
    Unix { socket: &'a str, export: &'a str },
    Tls { server: &'a NbdOverTls, export: &'a str },
}

impl<'a> Source<'a> {
    fn of(disk: &'a MachineDisk, around: &Surroundings<'a>) -> Result<Self, String> {
        let number = disk.number;
        let text = |path: &'a std::path::Path| {
            let text = path.to_str().filter(|text| !text.chars().any(char::is_control));
            text.ok_or_else(|| format!("{} of disk {number} has characters that XML has not", path.display()))
        };
        match (&disk.source, around.nbd) {
            (DiskAddress::File { path, format }, _) => {
                let format = match format {
                    DiskFormat::Raw => "raw",
                    DiskFormat::Qcow2 => "qcow2",
                };
                Ok(Self::File { path: text(path)?, format })
            }
            (DiskAddress::NbdUnix { export, .. }, _) if export.chars().any(char::is_control) => {
                Err(format!("the name {export:?} of disk {number} has characters that XML has not"))
            }
            (DiskAddress::NbdUnix { export, .. }, Some(server)) => Ok(Self::Tls { server, export }),
            (DiskAddress::NbdUnix { socket, export }, None) => {
                Ok(Self::Unix { socket: text(socket)?, export })
            }
        }
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Unix { .. } | Self::Tls { .. } => "network",
        }
    }

    const fn format(&self) -> &'static str {
        match self {
            Self::File { format, .. } => format,
            Self::Unix { .. } | Self::Tls { .. } => "raw",
        }
    }
}

fn start<'a>(name: &'a str, attributes: Attributes<'a>) -> BytesStart<'a> {
    BytesStart::new(name).with_attributes(attributes.iter().copied())
}

#[cfg(test)]
mod tests {
    use lifeboat_model::{CopyIdentity, MacAddress, PointId, Purpose, ServerId};

    use super::*;
    use crate::network::{Nic, Subnet};

    fn disk(number: u16, bus: DiskBus, export: &str) -> MachineDisk {
        let source = DiskAddress::NbdUnix { socket: "/run/nbd's".into(), export: export.into() };
        MachineDisk { number: DiskNumber(number), source, bytes: 1 << 20, bus }
    }

    fn spec() -> MachineSpec {
        MachineSpec {
            id: MachineId::new(7),
            name: "a <machine> & \"more\"".into(),
            cpus: 2,
            memory_mib: 64,
            firmware: Firmware::Uefi,
            disks: vec![disk(0, DiskBus::Virtio, "a&b"), disk(1, DiskBus::Sata, "c")],
            nics: vec![],
            identity: CopyIdentity {
                vault: VaultId::new(1),
                server: ServerId::new(2),
                point: PointId::new(3),
                purpose: Purpose::Drill,
            },
            changes: vec![],
        }
    }

    fn around<'a>() -> Surroundings<'a> {
        Surroundings {
            vault: VaultId::new(1),
            name: "n",
            kvm: false,
            console: "/c",
            forwards: &[],
            nbd: None,
            owner: None,
        }
    }

    #[test]
    fn a_spec_is_found_again_in_the_metadata_of_its_domain() {
        let spec = spec();
        let xml = domain(&spec, &spec.disks, &around()).unwrap();
        let begin = xml.find("<lifeboat:machine").unwrap();
        let end = xml.find("</lifeboat:machine>").unwrap() + "</lifeboat:machine>".len();
        assert_eq!(spec_in(&xml[begin..end]), Some(spec));
        assert_eq!(spec_in("<lifeboat:machine>{}</lifeboat:machine>"), None);
        assert_eq!(spec_in(""), None);
    }

    #[test]
    fn what_comes_from_elsewhere_cannot_become_markup() {
        let spec = spec();
        let xml = domain(&spec, &spec.disks, &around()).unwrap();
        assert!(xml.contains("<title>a &lt;machine&gt; &amp; &quot;more&quot;</title>"), "{xml}");
        assert!(xml.contains("name=\"a&amp;b\""), "{xml}");
        assert!(xml.contains("socket=\"/run/nbd&apos;s\""), "{xml}");
        let mut wrong = spec;
        wrong.disks[0] = disk(0, DiskBus::Virtio, "a\nb");
        assert!(domain(&wrong, &wrong.disks, &around()).unwrap_err().contains("characters that XML has not"));
    }

    #[test]
    fn another_host_reaches_disks_over_tls_only() {
        let spec = spec();
        let server = NbdOverTls { host: "vault.example".into(), port: 10809 };
        let xml = domain(&spec, &spec.disks, &Surroundings { nbd: Some(&server), ..around() }).unwrap();
        assert_eq!(xml.matches("tls=\"yes\"").count(), 2, "{xml}");
        assert_eq!(xml.matches("<host name=\"vault.example\" port=\"10809\"/>").count(), 2, "{xml}");
        assert!(!xml.contains("transport=\"unix\""), "{xml}");
    }

    #[test]
    fn disks_are_named_in_the_order_of_their_bus() {
        let disks: Vec<_> = (0..60)
            .map(|number| disk(number, if number % 2 == 0 { DiskBus::Virtio } else { DiskBus::Sata }, "x"))
            .collect();
        let name = |number| target_of(&disks, DiskNumber(number));
        assert_eq!(name(0).as_deref(), Some("vda"));
        assert_eq!(name(3).as_deref(), Some("sdb"));
        assert_eq!(name(50).as_deref(), Some("vdz"));
        assert_eq!(name(52).as_deref(), Some("vdaa"));
        assert_eq!(name(59).as_deref(), Some("sdad"));
        assert_eq!(name(60), None);
    }

    #[test]
    fn an_isolated_network_keeps_every_packet_in() {
        let mut spec = spec();
        let subnet = Subnet {
            network: [192, 168, 7, 0].into(),
            prefix: 24,
            gateway: [192, 168, 7, 1].into(),
            guest: [192, 168, 7, 30].into(),
        };
        let forwards = vec![Forward { host_port: 0, guest_port: 22 }];
        let attachment = Attachment::Isolated { subnet: Some(subnet), forwards };
        spec.nics = vec![Nic { mac: MacAddress::local(1), model: NicModel::E1000e, attachment }];
        let forwards = [Forward { host_port: 4000, guest_port: 22 }];
        let xml = domain(&spec, &spec.disks, &Surroundings { forwards: &forwards, ..around() }).unwrap();
        assert!(xml.contains("user,id=lifeboat-net0,restrict=on,"), "{xml}");
        assert!(xml.contains("hostfwd=tcp:127.0.0.1:4000-192.168.7.30:22"), "{xml}");
        assert!(xml.contains("bus=pcie.0,addr=0x02"), "{xml}");
        assert!(!xml.contains("<interface"), "{xml}");
    }
}
