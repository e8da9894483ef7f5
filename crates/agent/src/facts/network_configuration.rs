//! Where an interface's configuration is, and what it says: fixed addresses or DHCP.

use std::collections::BTreeMap;

use lifeboat_wire::facts::NetworkConfiguration;

use super::host::{Host, name};

/// ifupdown's file.
pub(crate) const INTERFACES: &str = "/etc/network/interfaces";
/// Where ifupdown has more of them.
pub(crate) const INTERFACES_D: &str = "/etc/network/interfaces.d";
/// Where systemd-networkd's files are. Below `/run` is what netplan has made of its own at this start.
pub(crate) const NETWORKD: [&str; 2] = ["/etc/systemd/network", "/run/systemd/network"];
/// Where NetworkManager's connections are.
pub(crate) const CONNECTIONS: [&str; 2] =
    ["/etc/NetworkManager/system-connections", "/run/NetworkManager/system-connections"];
/// Where the `ifcfg` files of Red Hat and of SUSE are.
pub(crate) const IFCFG: [&str; 2] = ["/etc/sysconfig/network-scripts", "/etc/sysconfig/network"];

/// What was found of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Configured {
    pub by: NetworkConfiguration,
    /// Whether its addresses are fixed, where that is said.
    pub fixed: Option<bool>,
    /// Whether it is meant by its name.
    pub named: bool,
}

/// The configuration of the interface with this name and address; none when nothing that is known speaks of it.
pub(super) fn of(host: &Host, interface: &str, mac: &str) -> Option<Configured> {
    ifupdown(host, interface)
        .or_else(|| networkd(host, interface, mac))
        .or_else(|| network_manager(host, interface, mac))
        .or_else(|| ifcfg(host, interface, mac))
}

/// Stanzas that begin with lines such as `iface eno1 inet static`.
fn ifupdown(host: &Host, interface: &str) -> Option<Configured> {
    let mut files = vec![INTERFACES.into()];
    files.extend(host.entries(INTERFACES_D));
    let texts: Vec<_> = files.into_iter().filter_map(|file| host.text(file).ok()).collect();
    let stanzas = texts.iter().flat_map(|text| text.lines()).filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("iface") && words.next() == Some(interface)).then(|| {
            let family = words.next().unwrap_or_default();
            (family, words.next().unwrap_or_default())
        })
    });
    // IPv4 counts, where both are there.
    let mut stanzas: Vec<_> = stanzas.collect();
    stanzas.sort_by_key(|(family, _)| *family != "inet");
    let (_, method) = stanzas.first()?;
    let fixed = match *method {
        "static" => Some(true),
        "dhcp" | "auto" => Some(false),
        _ => None,
    };
    Some(Configured { by: NetworkConfiguration::Ifupdown, fixed, named: true })
}

/// The first file that matches counts; netplan writes such files below `/run`.
fn networkd(host: &Host, interface: &str, mac: &str) -> Option<Configured> {
    let mut files: Vec<_> = NETWORKD.iter().flat_map(|directory| host.entries(directory)).collect();
    files.sort_by_key(|file| name(file));
    for file in files.iter().filter(|file| name(file).ends_with(".network")) {
        let Some(ini) = host.text(file).ok().map(|text| Ini::parse(&text)) else { continue };
        let by_mac = ini.words("Match", "MACAddress").any(|word| word.eq_ignore_ascii_case(mac));
        let pattern = ini.words("Match", "Name").find(|pattern| matches(pattern, interface));
        if !by_mac && pattern.is_none() {
            continue;
        }
        let dhcp = ini.words("Network", "DHCP").next();
        let fixed = match dhcp.map(str::to_ascii_lowercase).as_deref() {
            Some("yes" | "true" | "1" | "on" | "ipv4" | "both") => Some(false),
            _ if ini.has("Network", "Address") || ini.has("Address", "Address") => Some(true),
            _ => None,
        };
        let is_netplan = name(file).starts_with("10-netplan-");
        return Some(Configured {
            by: if is_netplan { NetworkConfiguration::Netplan } else { NetworkConfiguration::Networkd },
            fixed,
            named: !by_mac && pattern.is_some_and(|pattern| !pattern.contains(['*', '?', '['])),
        });
    }
    None
}

fn network_manager(host: &Host, interface: &str, mac: &str) -> Option<Configured> {
    for file in CONNECTIONS.iter().flat_map(|directory| host.entries(directory)) {
        let Some(ini) = host.text(&file).ok().map(|text| Ini::parse(&text)) else { continue };
        let named = ini.words("connection", "interface-name").any(|word| word == interface);
        let by_mac = ["ethernet", "802-3-ethernet"]
            .iter()
            .any(|section| ini.words(section, "mac-address").any(|word| word.eq_ignore_ascii_case(mac)));
        if !named && !by_mac {
            continue;
        }
        let fixed = match ini.words("ipv4", "method").next() {
            Some("manual") => Some(true),
            Some("auto") => Some(false),
            _ => None,
        };
        let is_netplan = name(&file).starts_with("netplan-");
        return Some(Configured {
            by: if is_netplan { NetworkConfiguration::Netplan } else { NetworkConfiguration::NetworkManager },
            fixed,
            named,
        });
    }
    None
}

/// Shell assignments, in a file that is named after the interface.
fn ifcfg(host: &Host, interface: &str, mac: &str) -> Option<Configured> {
    for file in IFCFG.iter().flat_map(|directory| host.entries(directory)) {
        let file_name = name(&file);
        let Some(of) = file_name.strip_prefix("ifcfg-") else { continue };
        let Ok(text) = host.text(&file) else { continue };
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
        };
        let device = value("DEVICE");
        let by_mac = value("HWADDR").is_some_and(|address| address.eq_ignore_ascii_case(mac));
        let named = device.as_deref().unwrap_or(of) == interface;
        if !named && !by_mac {
            continue;
        }
        let fixed = match value("BOOTPROTO").map(|word| word.to_ascii_lowercase()).as_deref() {
            Some("dhcp" | "dhcp4" | "dhcp+autoip" | "bootp") => Some(false),
            Some("static" | "none") => Some(true),
            _ => value("IPADDR").map(|_| true),
        };
        return Some(Configured { by: NetworkConfiguration::Ifcfg, fixed, named: named && !by_mac });
    }
    None
}

/// Sections with lines such as `Key=value`.
struct Ini(BTreeMap<(String, String), Vec<String>>);

impl Ini {
    fn parse(text: &str) -> Self {
        let mut values: BTreeMap<_, Vec<String>> = BTreeMap::new();
        let mut section = String::new();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name.to_owned();
            } else if let Some((key, value)) = line.split_once('=') {
                let key = (section.clone(), key.trim().to_owned());
                values.entry(key).or_default().push(value.trim().to_owned());
            }
        }
        Self(values)
    }

    fn words(&self, section: &str, key: &str) -> impl Iterator<Item = &str> {
        let values = self.0.get(&(section.to_owned(), key.to_owned())).map(Vec::as_slice).unwrap_or_default();
        values.iter().flat_map(|value| value.split_whitespace())
    }

    fn has(&self, section: &str, key: &str) -> bool {
        self.0.contains_key(&(section.to_owned(), key.to_owned()))
    }
}

/// Whether a name fits a pattern with `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(one) if *one == '?' || *one == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                // The last star takes one more.
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const MAC: &str = "52:54:00:aa:bb:cc";

    fn found(path: &str, text: &str) -> Option<(NetworkConfiguration, Option<bool>, bool)> {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        let found = of(&Host::new(root.path(), || {}), "eno1", MAC)?;
        Some((found.by, found.fixed, found.named))
    }

    #[test]
    fn each_system_of_configuration_is_understood() {
        use NetworkConfiguration::{Ifcfg, Ifupdown, Netplan, NetworkManager, Networkd};
        let interfaces = "auto eno1\niface eno1 inet6 auto\niface eno1 inet static\n  address 192.0.2.7/24\n";
        assert_eq!(found("etc/network/interfaces", interfaces), Some((Ifupdown, Some(true), true)));
        let network = "[Match]\nName=en* eth*\n\n[Network]\nDHCP=ipv4\n";
        assert_eq!(found("etc/systemd/network/wired.network", network), Some((Networkd, Some(false), false)));
        let network = "[Match]\nMACAddress=52:54:00:AA:BB:CC\n[Network]\nAddress=192.0.2.7/24\n";
        assert_eq!(found("etc/systemd/network/1.network", network), Some((Networkd, Some(true), false)));
        let network = "[Match]\nName=eno1\n[Network]\nAddress=192.0.2.7/24\n";
        let place = "run/systemd/network/10-netplan-eno1.network";
        assert_eq!(found(place, network), Some((Netplan, Some(true), true)));
        let connection =
            "[connection]\nid=x\ninterface-name=eno1\n[ipv4]\nmethod=manual\naddress1=192.0.2.7/24\n";
        let place = "etc/NetworkManager/system-connections/x.nmconnection";
        assert_eq!(found(place, connection), Some((NetworkManager, Some(true), true)));
        let ifcfg = "DEVICE=\"eno1\"\nBOOTPROTO=dhcp\n";
        assert_eq!(
            found("etc/sysconfig/network-scripts/ifcfg-eno1", ifcfg),
            Some((Ifcfg, Some(false), true))
        );
        assert_eq!(found("etc/network/interfaces", "iface eno2 inet dhcp\n"), None);
    }

    #[test]
    fn a_pattern_fits_as_a_shell_has_it() {
        for (pattern, fits) in
            [("en*", true), ("*", true), ("e?o1", true), ("e*1", true), ("en", false), ("?", false)]
        {
            assert_eq!(matches(pattern, "eno1"), fits, "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "[ -~\n]{0,300}") {
            let _ = Ini::parse(&text);
            let _ = matches(&text, "eno1");
        }
    }
}
