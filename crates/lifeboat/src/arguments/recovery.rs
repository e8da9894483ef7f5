//! The words of drills, failover, machines and jobs.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use lifeboat_model::Span;

#[derive(Subcommand)]
pub enum FailoverCommand {
    /// A drill: start a copy in a network of its own while replication goes on, see whether it comes
    /// up, and remove it.
    Test {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// latest, latest-app (the newest application-consistent one), a point's id or its unique beginning, or
        /// a time.
        #[arg(long, default_value = "latest")]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        point: String,
        /// The network that the copy joins; `own` for one of its own. What the target and the mappings say
        /// when absent.
        #[arg(long, value_name = "NETWORK|own")]
        network: Option<String>,
        /// Leave the copy running, until `failover cleanup`.
        #[arg(long)]
        keep: bool,
        /// Write the report as a page for a browser.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// Come back at once with the job.
        #[arg(long, conflicts_with = "report")]
        no_wait: bool,
    },
    /// End a drill: its copy is removed.
    Cleanup {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// What the drill has shown, for the record.
        #[arg(long)]
        note: Option<String>,
        /// Come back at once with the job.
        #[arg(long)]
        no_wait: bool,
    },
    /// Start the copy that takes over. The source may send nothing any more from then on.
    Run {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// latest (the source is asked for a last point first), latest-processed, latest-app (the newest
        /// application-consistent one), a point's id or its unique beginning, or a time.
        #[arg(long)]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        point: String,
        /// The network that the copy joins; `own` for one of its own. What the target and the mappings say
        /// when absent.
        #[arg(long, value_name = "NETWORK|own")]
        network: Option<String>,
        /// Come back at once with the job.
        #[arg(long)]
        no_wait: bool,
    },
    /// Planned: the source stops its services as its agent's settings say and sends its last write, and only
    /// then the copy starts. Nothing is lost. When a step fails, the source goes on as before.
    Plan {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// The network that the copy joins; `own` for one of its own. What the target and the mappings say
        /// when absent.
        #[arg(long, value_name = "NETWORK|own")]
        network: Option<String>,
        /// Come back at once with the job.
        #[arg(long)]
        no_wait: bool,
    },
    /// Until commit: start the copy that took over anew from another point. What it has written is gone.
    ChangePoint {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// latest-processed, latest-app, a point's id or its unique beginning, or a time.
        #[arg(long)]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        point: String,
        /// Come back at once with the job.
        #[arg(long)]
        no_wait: bool,
    },
    /// Make a failover final: its point cannot be changed any more.
    Commit {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
    },
}

#[derive(Subcommand)]
pub enum DrillCommand {
    /// Let the vault drill a server regularly: from its newest point, as `failover test` does.
    Schedule {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// Time between two drills, such as 7d; 1h to 366d. Each server has a moment of its own.
        #[arg(long, value_name = "SPAN", required_unless_present = "off")]
        every: Option<Span>,
        /// Drill it no more.
        #[arg(long, conflicts_with = "every")]
        off: bool,
    },
    /// Servers that are drilled regularly: when next, how the last one went, and what a drill waits for.
    List,
}

#[derive(Subcommand)]
pub enum MachineCommand {
    /// All machines.
    List,
    /// A server's machine.
    Show {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
    },
    /// The serial console of a server's machine.
    ///
    /// On a terminal it is used as if one sat before it; Ctrl-] leaves. Elsewhere, and with --output json, it shows
    /// what the machine has written so far.
    Console {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// Only show, and go on with what it writes until Ctrl-C.
        #[arg(long)]
        follow: bool,
        /// Type what standard input has, to its end, and print what the machine writes then until it is silent for
        /// a second.
        #[arg(long, conflicts_with = "follow")]
        input: bool,
    },
    /// Copy the disks of a server that has failed over to files of the recovery site while its machine runs, and
    /// let it go on with them: from then on it no longer needs the vault's volume.
    Hydrate {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// How the copies are kept.
        #[arg(long, value_enum, default_value = "qcow2")]
        format: LocalFormatArgument,
        /// Bytes a second that the copy of each disk may take; without it, as many as it can.
        #[arg(long, value_name = "BYTES")]
        limit: Option<u64>,
        /// Come back at once with the job.
        #[arg(long)]
        no_wait: bool,
    },
    /// Start a server's machine that is off, with its disks as it left them.
    Start {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
    },
    /// Shut a server's machine down; it stays off until it is started.
    Stop {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// Take its power away at once: what its guest has not written to its disks is lost.
        #[arg(long)]
        force: bool,
        /// Come back when its guest was told.
        #[arg(long)]
        no_wait: bool,
    },
    /// The screen of a server's machine, as a PNG image.
    Screenshot {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// The image; it is written over.
        file: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum JobCommand {
    /// Jobs, newest first.
    List {
        /// Only of this server.
        #[arg(long)]
        server: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// One job with its steps.
    Show {
        /// Id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        job: String,
        /// Write a drill's report as a page for a browser.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
    /// End a job and remove what it has made.
    Cancel {
        /// Id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        job: String,
        /// Come back at once.
        #[arg(long)]
        no_wait: bool,
    },
    /// Go on with a job that failed, from the step that failed.
    Retry {
        /// Id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        job: String,
        /// Come back at once.
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Subcommand)]
pub enum TargetCommand {
    /// How a server's machine is to look: what was set, and what comes from the server's facts.
    Show {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
    },
    /// Set how it is to look the next time it is started; what is not named stays.
    Set(TargetArguments),
    /// The key with which the vault runs commands in machines (probe `run=…`): one line for the
    /// `authorized_keys` of servers.
    SshKey,
}

#[derive(Args)]
pub struct TargetArguments {
    /// Name, id or unique beginning of an id.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub server: String,
    /// Virtual processors.
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory in mebibytes.
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// How it boots.
    #[arg(long, value_enum)]
    pub firmware: Option<FirmwareArgument>,
    /// How its disks are attached.
    #[arg(long, value_enum)]
    pub disk_bus: Option<DiskBusArgument>,
    /// Which network card it has.
    #[arg(long, value_enum)]
    pub network_card: Option<NetworkCardArgument>,
    /// The address of the network card by which it is reached, such as 52:54:00:12:34:56; `auto` for the source's.
    #[arg(long, value_name = "ADDRESS|auto")]
    pub mac: Option<String>,
    /// The network that a failover joins; `own` for one of its own, `none` for what the mappings say.
    #[arg(long, value_name = "NETWORK|own|none")]
    pub network: Option<String>,
    /// The network that a drill joins; `own` for one of its own, `none` for what the mappings say.
    #[arg(long, value_name = "NETWORK|own|none")]
    pub test_network: Option<String>,
    /// The server's address, which chooses the mapping and by which probes reach the machine in a network;
    /// `none` when it has no fixed one.
    #[arg(long, value_name = "ADDRESS|none")]
    pub address: Option<String>,
    /// What shows that it is up: console=TEXT, tcp=PORT, ssh=PORT, http=PORT/PATH[=STATUS], or
    /// run[@USER][:PORT]=COMMAND, which succeeds over SSH (as root on port 22, with the key of `target
    /// ssh-key`); repeatable, all have to pass; `default` for a login on the console or an SSH banner.
    #[arg(long = "probe", value_name = "PROBE|default")]
    pub probes: Vec<String>,
    /// In which time it has to come up.
    #[arg(long)]
    pub up_within: Option<Span>,
    /// Values that are to come from the server's facts again; repeatable.
    #[arg(long = "derive", value_name = "VALUE", value_enum, value_delimiter = ',')]
    pub derive: Vec<DerivedArgument>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DerivedArgument {
    /// All that follow.
    All,
    /// Virtual processors.
    Cpus,
    /// Memory.
    Memory,
    /// How it boots.
    Firmware,
    /// How its disks are attached.
    DiskBus,
    /// Which network card it has.
    NetworkCard,
    /// The network card's address.
    Mac,
    /// In which time it has to come up.
    UpWithin,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum LocalFormatArgument {
    /// Byte for byte.
    Raw,
    /// QEMU's format, which holds only what was written.
    Qcow2,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum FirmwareArgument {
    /// The boot sector of the first disk.
    Bios,
    /// The EFI system partition of the first disk.
    Uefi,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum DiskBusArgument {
    /// virtio-blk.
    Virtio,
    /// AHCI.
    Sata,
    /// NVMe.
    Nvme,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum NetworkCardArgument {
    /// virtio-net.
    Virtio,
    /// Intel 82574.
    E1000e,
}
