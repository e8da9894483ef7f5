//! The command line: noun, then verb.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use lifeboat_api::ExportFormat;
use lifeboat_model::{DiskNumber, PointKind, ServerId, Span};

use crate::command::trial;

mod network;
mod recovery;

pub use network::{NetworkCommand, NetworkSettings};
pub use recovery::{
    DerivedArgument, DiskBusArgument, DrillCommand, FailoverCommand, FirmwareArgument, JobCommand,
    LocalFormatArgument, MachineCommand, NetworkCardArgument, TargetArguments, TargetCommand,
};

/// Self-hosted disaster recovery for physical servers.
///
/// Exit codes: 0 done; 1 the answer is no: a fault was found, or what was asked for has failed; 2 it
/// could not be done or nothing of that name is there, and standard error says why.
#[derive(Parser)]
#[command(name = "lifeboat", version, max_term_width = 100)]
pub struct Arguments {
    #[command(flatten)]
    pub site: SiteArguments,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct SiteArguments {
    /// The site: its directory (with site.toml) or the vault's URL. When absent, LIFEBOAT_SITE in the
    /// environment; else the last one that was named here.
    #[arg(long, global = true, value_name = "DIR|URL")]
    pub site: Option<String>,
    /// The operator's certificate, for a site that is named by URL. When absent,
    /// LIFEBOAT_CREDENTIALS in the environment.
    #[arg(long, global = true, value_name = "DIR")]
    pub credentials: Option<PathBuf>,
    /// How answers are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs: the shapes of the vault's API.
    Json,
}

#[derive(Subcommand)]
pub enum Command {
    /// The state of the site at a glance.
    Status,
    /// Protected servers.
    #[command(subcommand)]
    Server(ServerCommand),
    /// Recovery points.
    #[command(subcommand)]
    Point(PointCommand),
    /// Recovery points opened as disks.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Check what is stored, or the copy against the live disks.
    Verify {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// Compare the copy with the live disks, without stopping them.
        #[arg(long)]
        against_source: bool,
        /// Wait at most so long, such as 2h.
        #[arg(long, value_name = "SPAN")]
        timeout: Option<Span>,
    },
    /// Whether a server would start at the recovery site, and what to change while it still runs; exit
    /// code 1 when it would not.
    Readiness {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
    },
    /// Drills, failover, and what follows.
    #[command(subcommand)]
    Failover(FailoverCommand),
    /// Drills that the vault begins by itself.
    #[command(subcommand)]
    Drill(DrillCommand),
    /// Servers' machines at the recovery site.
    #[command(subcommand)]
    Machine(MachineCommand),
    /// What goes on, step by step.
    #[command(subcommand)]
    Job(JobCommand),
    /// How a server's machine is to look at the recovery site.
    #[command(subcommand)]
    Target(TargetCommand),
    /// Networks at the recovery site, and which stand in for those of the protected site.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// What happened.
    #[command(subcommand)]
    Event(EventCommand),
    /// Run a vault, a process server and an agent on this machine.
    Trial(trial::Options),
    /// The vault's own commands, on its machine.
    #[command(subcommand)]
    Vault(VaultCommand),
    /// The process server's own commands, on its machine.
    #[command(subcommand)]
    ProcessServer(ProcessServerCommand),
    /// The site's authority, which issues certificates.
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// Certificates of the site.
    #[command(subcommand)]
    Certificate(CertificateCommand),
}

#[derive(Subcommand)]
pub enum ServerCommand {
    /// All protected servers.
    List,
    /// One server: state, RPO and what gates it, disks, policy.
    Show {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
    },
    /// Change how a server is protected.
    SetPolicy {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// Time between crash-consistent points, such as 5s.
        #[arg(long)]
        interval: Option<Span>,
        /// Time between file-system-consistent points, such as 1h; `off` for none.
        #[arg(long, value_name = "SPAN|off")]
        filesystem_interval: Option<String>,
        /// Which points are kept: `UNTIL[:EVERY]`, comma separated, such as 2h,1d:1h,15d:4h.
        #[arg(long, value_name = "RULES")]
        retention: Option<String>,
        /// Bytes a second that a full copy or a resync may send; `off` for no limit.
        #[arg(long, value_name = "BYTES|off")]
        copy_limit: Option<String>,
        /// How long a point may be tried for before the next one is due, 1s to 1d.
        #[arg(long, value_name = "SPAN")]
        capture_timeout: Option<Span>,
    },
    /// Take a disk out of protection; the points that have it stay.
    ///
    /// Only needed where the agent cannot say so itself. Otherwise take the disk out of `disks` in the
    /// agent's settings: while they name it, the agent brings it back.
    RemoveDisk {
        /// Name, id or unique beginning of an id.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// The disk's number.
        disk: DiskNumber,
    },
    /// Compare all disks with the copy and send what differs.
    Resync {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// Come back when it has ended.
        #[arg(long)]
        wait: bool,
        /// With --wait: at most so long, such as 2h.
        #[arg(long, value_name = "SPAN")]
        timeout: Option<Span>,
    },
}

#[derive(Subcommand)]
pub enum PointCommand {
    /// The recovery points of a server, newest first.
    List {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// At most so many, the newest.
        #[arg(long)]
        limit: Option<u32>,
    },
    /// Take a recovery point now.
    Take {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// What it has to guarantee: crash or filesystem.
        #[arg(long, default_value = "crash")]
        kind: PointKind,
        /// Come back when the point is committed.
        #[arg(long)]
        wait: bool,
        /// With --wait: at most so long.
        #[arg(long, default_value = "10m", value_name = "SPAN")]
        timeout: Span,
    },
}

#[derive(Subcommand)]
pub enum VolumeCommand {
    /// Open a recovery point as disks that can be written; answers with an NBD URI a disk.
    Open {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// latest, a point's id or its unique beginning, or a time (the newest point not after it;
        /// UTC without an offset).
        #[arg(long, default_value = "latest")]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        point: String,
        /// Only this disk.
        #[arg(long)]
        disk: Option<DiskNumber>,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
        /// Close the volume when no client used it for so long, such as 10m.
        #[arg(long, value_name = "SPAN")]
        lease: Option<Span>,
    },
    /// Open volumes.
    List,
    /// Close a volume; what was written to it is gone.
    Close {
        /// Id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        volume: String,
        /// Also while clients use it: they are broken off.
        #[arg(long)]
        force: bool,
    },
    /// Write a disk of a recovery point to an image file.
    Export {
        /// Name, id or unique beginning of one.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        server: String,
        /// latest, a point's id or its unique beginning, or a time.
        #[arg(long, default_value = "latest")]
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        point: String,
        /// The disk.
        #[arg(long)]
        disk: DiskNumber,
        /// The image's format: raw, qcow2, vhd or vmdk.
        #[arg(long, value_parser = export_format)]
        format: ExportFormat,
        /// The image; it must not exist.
        file: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum EventCommand {
    /// Events, newest first.
    List {
        /// Only of this server.
        #[arg(long)]
        server: Option<String>,
        /// At least this: information, warning or critical.
        #[arg(long)]
        severity: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Note that events were seen to, so that they want no attention any more.
    Acknowledge {
        /// Numbers of events; what happened before about the same things is seen to as well.
        #[arg(value_name = "NUMBER", required_unless_present = "all", conflicts_with = "all")]
        numbers: Vec<u64>,
        /// All that there are now.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Subcommand)]
pub enum VaultCommand {
    /// Run the vault.
    Serve {
        /// Its settings.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Make the catalog anew from the manifests in the object store.
    RebuildCatalog {
        /// The vault's settings.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Also read every file and check its digest.
        #[arg(long)]
        check_digests: bool,
    },
}

#[derive(Subcommand)]
pub enum ProcessServerCommand {
    /// Run the process server.
    Serve {
        /// Its settings.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Put aside what the spool holds of one server, when it is damaged; its agent then compares
    /// its disks with the vault's copy. The process server must be stopped.
    SetAside {
        /// Its settings.
        #[arg(long, value_name = "FILE", default_value = "/etc/lifeboat/process-server.toml")]
        config: PathBuf,
        /// The server's id.
        #[arg(long)]
        server: ServerId,
    },
}

#[derive(Subcommand)]
pub enum AuthorityCommand {
    /// Make the authority of a new site.
    Create {
        /// The site's name.
        #[arg(long)]
        name: String,
        /// Where it is kept; guard this directory.
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum CertificateCommand {
    /// Issue a certificate to a role.
    Issue {
        /// The authority's directory.
        #[arg(long, value_name = "DIR")]
        authority: PathBuf,
        /// For which role.
        #[arg(long = "for", value_enum, value_name = "ROLE")]
        role: Role,
        /// The role's name: of a process server or an operator.
        #[arg(long)]
        name: Option<String>,
        /// The id of the server whose certificate is renewed, for an agent; a new one is drawn when absent.
        #[arg(long, value_name = "ID")]
        server: Option<ServerId>,
        /// A host name or address by which others reach it. Repeatable.
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How long it is good.
        #[arg(long, default_value = "397d", value_name = "SPAN")]
        validity: Span,
        /// Where the certificate, its private key and the authority's certificate are written.
        dir: PathBuf,
    },
    /// The certificates that the authority has issued.
    List {
        /// The authority's directory.
        #[arg(long, value_name = "DIR")]
        authority: PathBuf,
    },
    /// Revoke a certificate: every role refuses it from then on.
    Revoke {
        /// The authority's directory.
        #[arg(long, value_name = "DIR")]
        authority: PathBuf,
        /// Its serial number, as `certificate list` shows it.
        serial: String,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A protected server; a new server id is drawn.
    Agent,
    /// A process server.
    ProcessServer,
    /// The vault.
    Vault,
    /// A person or program that uses the API.
    Operator,
}

fn export_format(text: &str) -> Result<ExportFormat, String> {
    match text {
        "raw" => Ok(ExportFormat::Raw),
        "qcow2" => Ok(ExportFormat::Qcow2),
        "vhd" => Ok(ExportFormat::Vhd),
        "vmdk" => Ok(ExportFormat::Vmdk),
        _ => Err("the formats are raw, qcow2, vhd and vmdk".to_owned()),
    }
}
