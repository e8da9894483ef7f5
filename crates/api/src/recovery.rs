use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_model::{DiskNumber, JobId, MachineId, PointId, PointKind, ServerId, Span, VolumeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Starts a drill: a copy of the server in a network of its own, while replication goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TestFailover {
    /// From which point: `latest`, `latest-app`, an id or a unique beginning of one, or a time. `latest` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<String>,
    /// Leave the copy running after the report, until it is cleaned up.
    #[serde(default)]
    pub keep: bool,
    /// The network that the copy joins, or `own` for one of its own. What the target and the mappings say
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// Removes the copy of a drill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CleanUp {
    /// What the drill has shown, in an operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Starts the copy that takes over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    /// `latest` (the source is asked for a last point first), `latest-processed`, `latest-app`, a point's id or
    /// a unique beginning of one, or a time.
    pub point: String,
    /// The network that the copy joins, or `own` for one of its own. What the target and the mappings say
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// Has the source stop after its last write, and starts the copy that takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlannedFailover {
    /// The network that the copy joins, or `own` for one of its own. What the target and the mappings say
    /// when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// Starts the copy that took over anew, from another point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePoint {
    /// `latest-processed`, `latest-app`, a point's id or a unique beginning of one, or a time.
    pub point: String,
}

/// Copies the disks of a machine that took over to the recovery site's storage, while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hydrate {
    /// How the copies are kept.
    pub format: LocalFormat,
    /// At most so many bytes a second for each disk; as fast as it goes when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

/// How a disk is kept in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LocalFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's format, which holds only what was written.
    #[default]
    Qcow2,
}

/// A server's copy at the recovery site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// The machine's id.
    #[schema(value_type = String)]
    pub id: MachineId,
    /// The server that it is a copy of.
    #[schema(value_type = String)]
    pub server: ServerId,
    /// That server's name.
    pub server_name: String,
    /// What it is for.
    pub purpose: MachinePurpose,
    /// Whether it runs.
    pub state: MachineState,
    /// Why it does not run, when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The recovery point that it began with.
    #[schema(value_type = String)]
    pub point: PointId,
    /// The point in time of it.
    #[schema(value_type = String, format = DateTime)]
    pub point_time: Timestamp,
    /// The volume that holds its disks; absent once all of them are files of the recovery site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub volume: Option<VolumeId>,
    /// The disks that it has moved over to files of the recovery site. The others are the volume's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk_files: Vec<DiskFile>,
    /// The job that started it.
    #[schema(value_type = String)]
    pub job: JobId,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub begun: Timestamp,
    /// When its failover was made final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub committed: Option<Timestamp>,
    /// When an operator had it stopped; absent while it is to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub stopped: Option<Timestamp>,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in mebibytes.
    pub memory_mib: u64,
    /// Where ports of the machine are reached on the vault's machine.
    pub forwards: Vec<Forward>,
    /// The network or the host's bridge that it is in; absent when it has a network of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Its address there, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// What stands before a command on the vault's machine that is to reach that address, when something
    /// must, such as `nsenter --target 4711 --net`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrance: Option<String>,
}

/// How a machine is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopMachine {
    /// Its power is taken away at once. Otherwise its guest is asked to shut down, as by a power button.
    pub force: bool,
}

/// A disk of a machine that is a file of the recovery site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskFile {
    /// Its number on the server.
    #[schema(value_type = u32)]
    pub disk: DiskNumber,
    /// The file, on the machine that runs the vault.
    #[schema(value_type = String)]
    pub path: PathBuf,
}

/// A port of the vault's machine that leads to one of a recovered machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forward {
    /// On the vault's loopback address.
    pub port: u16,
    /// On the machine.
    pub to: u16,
}

/// What a machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MachinePurpose {
    /// A drill: it is isolated, and goes when it is cleaned up.
    Drill,
    /// A failover: it has taken over from the source.
    Failover,
}

/// Whether a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// It runs.
    Running,
    /// It is off.
    Off,
    /// Its provider does not know it.
    Absent,
}

/// Part of what a machine has written to its serial console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Console {
    /// The offset in bytes of the end of `text`; the next question begins there.
    pub next: u64,
    /// The text; what is not UTF-8 is replaced.
    pub text: String,
}

/// How a server's machine looks at the recovery site: what was set, and the rest as the server's facts
/// and the recovery site suggest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Target {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in mebibytes.
    pub memory_mib: u64,
    /// How it boots.
    pub firmware: Firmware,
    /// How its disks are attached.
    pub disk_bus: DiskBus,
    /// Which network card it has.
    pub network_card: NetworkCard,
    /// The address of the card by which the server is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "52:54:00:12:34:56")]
    pub mac: Option<String>,
    /// The bridge on the vault's machine that a failover joins, when `network` is absent. A network of kind
    /// `bridge` says the same for many servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The network that a failover joins, or `own` for one of its own. The mappings decide when absent, and
    /// where there is none it is one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The same for a drill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_network: Option<String>,
    /// The server's address: with it mappings are chosen, probes reach the machine in a network, and two
    /// machines with the same one in one network are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.5.0.7")]
    pub address: Option<Ipv4Addr>,
    /// What decides that it is up: all of them. When empty, a login on the serial console or an SSH
    /// banner on port 22, whichever comes first.
    pub probes: Vec<Probe>,
    /// In which time it has to come up.
    #[schema(value_type = String, example = "10m")]
    pub up_within: Span,
    /// The values that nobody has set, by their names here, each with where it comes from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub derived: BTreeMap<String, String>,
}

/// How an operator wants a server's machine to look. What is absent comes from the server's facts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TargetSettings {
    /// Virtual processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory in mebibytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// How it boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// How its disks are attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bus: Option<DiskBus>,
    /// Which network card it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_card: Option<NetworkCard>,
    /// The address of the card by which the server is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "52:54:00:12:34:56")]
    pub mac: Option<String>,
    /// The bridge on the vault's machine that a failover joins; see `Target`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The network that a failover joins; see `Target`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The same for a drill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_network: Option<String>,
    /// The server's address; see `Target`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.5.0.7")]
    pub address: Option<Ipv4Addr>,
    /// What decides that it is up; see `Target`.
    pub probes: Vec<Probe>,
    /// In which time it has to come up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10m")]
    pub up_within: Option<Span>,
}

impl From<Target> for TargetSettings {
    /// What was set, without what was derived.
    fn from(target: Target) -> Self {
        fn unless<T>(target: &Target, name: &str, value: T) -> Option<T> {
            (!target.derived.contains_key(name)).then_some(value)
        }
        Self {
            cpus: unless(&target, "cpus", target.cpus),
            memory_mib: unless(&target, "memory_mib", target.memory_mib),
            firmware: unless(&target, "firmware", target.firmware),
            disk_bus: unless(&target, "disk_bus", target.disk_bus),
            network_card: unless(&target, "network_card", target.network_card),
            mac: unless(&target, "mac", target.mac.clone()).flatten(),
            up_within: unless(&target, "up_within", target.up_within),
            address: unless(&target, "address", target.address).flatten(),
            bridge: target.bridge,
            network: target.network,
            test_network: target.test_network,
            probes: target.probes,
        }
    }
}

impl Default for Target {
    fn default() -> Self {
        Self {
            cpus: 2,
            memory_mib: 2048,
            firmware: Firmware::Bios,
            disk_bus: DiskBus::Virtio,
            network_card: NetworkCard::Virtio,
            mac: None,
            bridge: None,
            network: None,
            test_network: None,
            address: None,
            probes: Vec::new(),
            up_within: Span::seconds(600),
            derived: BTreeMap::new(),
        }
    }
}

/// How a machine boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// The boot sector of the first disk.
    Bios,
    /// The EFI system partition of the first disk.
    Uefi,
}

/// How a machine's disks are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// virtio-blk.
    Virtio,
    /// AHCI.
    Sata,
    /// `NVMe`.
    Nvme,
}

/// Which network card a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkCard {
    /// virtio-net.
    Virtio,
    /// Intel 82574.
    E1000e,
}

/// What shows that a machine is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "probe", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Probe {
    /// Its serial console shows this text.
    Console {
        /// The text.
        text: String,
    },
    /// It accepts a TCP connection.
    Tcp {
        /// The port.
        port: u16,
    },
    /// An SSH server greets.
    Ssh {
        /// The port.
        port: u16,
    },
    /// An HTTP server answers.
    Http {
        /// The port.
        port: u16,
        /// The path.
        path: String,
        /// The status that it answers with.
        status: u16,
    },
    /// A command succeeds that the vault runs over SSH, with its own key.
    Run {
        /// The command, for the user's shell.
        command: String,
        /// As this user.
        #[serde(default = "root")]
        user: String,
        /// The port of the SSH server.
        #[serde(default = "ssh_port")]
        port: u16,
    },
}

fn root() -> String {
    "root".to_owned()
}

const fn ssh_port() -> u16 {
    22
}

/// The key with which the vault logs in to servers' machines, to run commands that show whether they are up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshKey {
    /// One line for a server's `authorized_keys`.
    pub public_key: String,
}

/// What a drill has shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrillReport {
    /// The server's name.
    pub server_name: String,
    /// The recovery point.
    #[schema(value_type = String)]
    pub point: PointId,
    /// Its point in time.
    #[schema(value_type = String, format = DateTime)]
    pub point_time: Timestamp,
    /// What it guarantees.
    #[schema(value_type = String)]
    pub point_kind: PointKind,
    /// How old it was when the drill began, in milliseconds.
    pub point_age_ms: u64,
    /// Whether the machine came up as wanted.
    pub up: bool,
    /// One sentence: what decided that.
    pub verdict: String,
    /// Each probe.
    pub probes: Vec<ProbeResult>,
    /// From the operator's command to the machine's first instruction, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_instruction_ms: Option<u64>,
    /// From the first instruction until it was up, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// What ran it, such as `QEMU 7.2.22, TCG: slow emulation, because …`.
    pub compute: String,
    /// The last lines of its serial console.
    pub console: String,
    /// Its screen as PNG in base64; absent when none could be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub screenshot: Option<String>,
    /// The drill before it, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousDrill>,
    /// What differs from that one, a sentence each; empty when nothing does that matters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
    /// What whoever cleaned it up wrote down about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// One probe of a drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProbeResult {
    /// What was looked for.
    pub probe: String,
    /// Whether it was found.
    pub passed: bool,
    /// When, counted from the first instruction in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
    /// Why not, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A drill in short: as the next one's report and the server refer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreviousDrill {
    /// Its job.
    #[schema(value_type = String)]
    pub job: JobId,
    /// When it was begun.
    #[schema(value_type = String, format = DateTime)]
    pub begun: Timestamp,
    /// Whether the machine came up.
    pub up: bool,
    /// How long that took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// The recovery point, when the drill came to choosing one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub point: Option<PointId>,
    /// One sentence: what decided whether it came up, or why the drill failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// What whoever cleaned it up wrote down about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
