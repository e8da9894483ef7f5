//! `lifeboat target …`.

use lifeboat_api::{DiskBus, Firmware, NetworkCard, Probe, Target, TargetSettings};

use crate::arguments::{
    DerivedArgument, DiskBusArgument, FirmwareArgument, NetworkCardArgument, Output, SiteArguments,
    TargetArguments, TargetCommand,
};
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line};

pub async fn run(arguments: &SiteArguments, command: TargetCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let target = match command {
        TargetCommand::Show { server } => vault.target(&server).await?,
        TargetCommand::Set(settings) => {
            let target = changed(vault.target(&settings.server).await?.into(), &settings)?;
            vault.set_target(&settings.server, &target).await?
        }
        TargetCommand::SshKey => {
            let key = vault.ssh_key().await?;
            if arguments.output == Output::Json {
                print_json(&key)?;
            } else {
                print_line(&key.public_key);
            }
            return Ok(Answer::Done);
        }
    };
    if arguments.output == Output::Json {
        print_json(&target)?;
    } else {
        print_target(&target);
    }
    Ok(Answer::Done)
}

fn changed(mut target: TargetSettings, settings: &TargetArguments) -> Result<TargetSettings, Failure> {
    for value in &settings.derive {
        forget(&mut target, *value);
    }
    target.cpus = settings.cpus.or(target.cpus);
    target.memory_mib = settings.memory.or(target.memory_mib);
    target.up_within = settings.up_within.or(target.up_within);
    if let Some(firmware) = settings.firmware {
        target.firmware = Some(match firmware {
            FirmwareArgument::Bios => Firmware::Bios,
            FirmwareArgument::Uefi => Firmware::Uefi,
        });
    }
    if let Some(bus) = settings.disk_bus {
        target.disk_bus = Some(match bus {
            DiskBusArgument::Virtio => DiskBus::Virtio,
            DiskBusArgument::Sata => DiskBus::Sata,
            DiskBusArgument::Nvme => DiskBus::Nvme,
        });
    }
    if let Some(card) = settings.network_card {
        target.network_card = Some(match card {
            NetworkCardArgument::Virtio => NetworkCard::Virtio,
            NetworkCardArgument::E1000e => NetworkCard::E1000e,
        });
    }
    if let Some(mac) = &settings.mac {
        target.mac = (mac != "auto").then(|| mac.clone());
    }
    if let Some(network) = &settings.network {
        // Whoever names a network means it instead of a bridge that was set before.
        (target.network, target.bridge) = (unless_none(network), None);
    }
    if let Some(network) = &settings.test_network {
        target.test_network = unless_none(network);
    }
    if let Some(address) = &settings.address {
        target.address = match unless_none(address) {
            Some(text) => Some(
                text.parse()
                    .map_err(|_| Failure::new(format!("{text:?} is no IPv4 address such as 10.5.0.7")))?,
            ),
            None => None,
        };
    }
    if !settings.probes.is_empty() {
        target.probes = if settings.probes == ["default"] {
            Vec::new()
        } else {
            settings.probes.iter().map(|text| probe(text)).collect::<Result<_, _>>()?
        };
    }
    Ok(target)
}

/// Lets a value come from the server's facts again.
fn forget(target: &mut TargetSettings, value: DerivedArgument) {
    let is = |one| value == one || value == DerivedArgument::All;
    if is(DerivedArgument::Cpus) {
        target.cpus = None;
    }
    if is(DerivedArgument::Memory) {
        target.memory_mib = None;
    }
    if is(DerivedArgument::Firmware) {
        target.firmware = None;
    }
    if is(DerivedArgument::DiskBus) {
        target.disk_bus = None;
    }
    if is(DerivedArgument::NetworkCard) {
        target.network_card = None;
    }
    if is(DerivedArgument::Mac) {
        target.mac = None;
    }
    if is(DerivedArgument::UpWithin) {
        target.up_within = None;
    }
}

fn unless_none(text: &str) -> Option<String> {
    (text != "none").then(|| text.to_owned())
}

fn probe(text: &str) -> Result<Probe, Failure> {
    let wrong = || {
        Failure::new(format!(
            "{text:?} is no probe: it is console=TEXT, tcp=PORT, ssh=PORT, http=PORT/PATH[=STATUS] or \
             run[@USER][:PORT]=COMMAND"
        ))
    };
    let (kind, rest) = text.split_once('=').ok_or_else(wrong)?;
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    Ok(match kind {
        "console" if !rest.is_empty() => Probe::Console { text: rest.to_owned() },
        "tcp" => Probe::Tcp { port: port(rest)? },
        "ssh" => Probe::Ssh { port: port(rest)? },
        "http" => {
            let (place, status) = match rest.rsplit_once('=') {
                Some((place, status)) => (place, status.parse().map_err(|_| wrong())?),
                None => (rest, 200),
            };
            let (number, path) = place.split_once('/').unwrap_or((place, ""));
            Probe::Http { port: port(number)?, path: format!("/{path}"), status }
        }
        _ => {
            let place = kind.strip_prefix("run").filter(|_| !rest.is_empty()).ok_or_else(wrong)?;
            let (user, number) = place.split_once(':').map_or((place, None), |(user, at)| (user, Some(at)));
            let user = match (user, user.strip_prefix('@')) {
                ("", _) => "root",
                (_, Some(user)) if !user.is_empty() => user,
                _ => return Err(wrong()),
            };
            Probe::Run { command: rest.to_owned(), user: user.to_owned(), port: number.map_or(Ok(22), port)? }
        }
    })
}

fn print_target(target: &Target) {
    let firmware = match target.firmware {
        Firmware::Bios => "BIOS",
        Firmware::Uefi => "UEFI",
    };
    let bus = match target.disk_bus {
        DiskBus::Virtio => "virtio",
        DiskBus::Sata => "SATA",
        DiskBus::Nvme => "NVMe",
    };
    let card = match target.network_card {
        NetworkCard::Virtio => "virtio",
        NetworkCard::E1000e => "e1000e",
    };
    let line = |head: &str, text: &str, name: &str| {
        let from =
            target.derived.get(name).map_or_else(|| "set".to_owned(), |reason| format!("derived: {reason}"));
        print_line(&format!("{head:<10} {text:<18} ({from})"));
    };
    line("Processors", &target.cpus.to_string(), "cpus");
    line("Memory", &format!("{} MiB", target.memory_mib), "memory_mib");
    line("Firmware", firmware, "firmware");
    line("Disks", bus, "disk_bus");
    line("Card", card, "network_card");
    line("MAC", target.mac.as_deref().unwrap_or("one of its own"), "mac");
    line("Up within", &target.up_within.to_string(), "up_within");
    let joins = |network: Option<&String>| match network.map(String::as_str) {
        None => "what the mappings say, else a network of its own".to_owned(),
        Some("own") => "a network of its own".to_owned(),
        Some(name) => format!("network {name}"),
    };
    let production = match (&target.network, &target.bridge) {
        (None, Some(bridge)) => format!("bridge {bridge}"),
        (network, _) => joins(network.as_ref()),
    };
    print_line(&format!("Network    at a failover {production}"));
    print_line(&format!("           at a drill {}", joins(target.test_network.as_ref())));
    if let Some(address) = target.address {
        print_line(&format!("           with the address {address}"));
    }
    if target.probes.is_empty() {
        print_line("Up when    its console shows a login, or SSH greets on port 22");
    }
    for probe in &target.probes {
        print_line(&format!("Up when    {}", words(probe)));
    }
}

fn words(probe: &Probe) -> String {
    match probe {
        Probe::Console { text } => format!("its console shows {text:?}"),
        Probe::Tcp { port } => format!("it accepts connections on port {port}"),
        Probe::Ssh { port } => format!("SSH greets on port {port}"),
        Probe::Http { port, path, status } => format!("HTTP on port {port} answers {path} with {status}"),
        Probe::Run { command, user, port } => {
            format!("`{command}` succeeds over SSH as {user} on port {port}")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    #[test]
    fn probes_are_read_as_they_are_documented() {
        assert_eq!(probe("ssh=22").unwrap(), Probe::Ssh { port: 22 });
        let http = |port, path: &str, status| Probe::Http { port, path: path.into(), status };
        assert_eq!(probe("http=80").unwrap(), http(80, "/", 200));
        assert_eq!(probe("http=8080/health?deep=1=204").unwrap(), http(8080, "/health?deep=1", 204));
        assert_eq!(probe("console=login: =").unwrap(), Probe::Console { text: "login: =".into() });
        let run =
            |user: &str, port, command: &str| Probe::Run { command: command.into(), user: user.into(), port };
        assert_eq!(probe("run=test -e /a=b").unwrap(), run("root", 22, "test -e /a=b"));
        assert_eq!(probe("run@backup=pg_isready").unwrap(), run("backup", 22, "pg_isready"));
        assert_eq!(probe("run:2222=true").unwrap(), run("root", 2222, "true"));
        assert_eq!(probe("run@a.b:2222=true").unwrap(), run("a.b", 2222, "true"));
        for text in ["run", "run=", "run@=true", "run:=true", "run:0=true", "runs=true", "run@a:b=true"] {
            assert!(probe(text).is_err(), "{text}");
        }
        for text in ["", "ssh", "ssh=0", "tcp=70000", "console=", "ping=1"] {
            assert!(probe(text).is_err(), "{text}");
        }
    }
}
