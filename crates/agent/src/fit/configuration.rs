//! Another address in the text of a configuration. Pure.
//!
//! A text is divided into blocks, each of which configures one interface. The block that gives its
//! interface the old address is changed, and only whole words of it that are that address, its network or
//! its gateway. Whose interface it is does not matter: one address is one interface's, which is often a
//! bridge or a bond over the card.

use std::iter;
use std::net::Ipv4Addr;

use lifeboat_model::AddressChange;

/// Whose form a text has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `/etc/network/interfaces`.
    Ifupdown,
    /// Files `*.network` of systemd-networkd.
    Networkd,
    /// netplan's YAML.
    Netplan,
    /// NetworkManager's connections.
    Keyfile,
    /// The shell assignments of Red Hat and SUSE.
    Ifcfg,
}

#[cfg(any(test, feature = "fuzz"))]
impl Form {
    pub(crate) const ALL: [Self; 5] =
        [Self::Ifupdown, Self::Networkd, Self::Netplan, Self::Keyfile, Self::Ifcfg];
}

/// What becomes of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The text, where it is another one.
    pub text: Option<String>,
    /// Whether the old address or the new one was configured in it.
    pub is_configured: bool,
}

/// Changes an address in a text.
pub(crate) fn change(form: Form, text: &str, change: &AddressChange) -> Changed {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let owners = match form {
        Form::Ifupdown => stanzas(&lines),
        Form::Netplan => interfaces(&lines),
        Form::Networkd | Form::Keyfile | Form::Ifcfg => vec![0; lines.len()],
    };
    let mut changed = String::with_capacity(text.len());
    let mut is_configured = false;
    let mut done = 0;
    while done < lines.len() {
        let same = owners[done..].iter().take_while(|owner| **owner == owners[done]).count();
        let block = Block { form, lines: &lines[done..done + same] };
        is_configured |= block.configures(change.from) || block.configures(change.to);
        if block.configures(change.from) {
            block.changed(change, &mut changed);
        } else {
            changed.extend(block.lines.iter().copied());
        }
        done += same;
    }
    Changed { text: (changed != text).then_some(changed), is_configured }
}

/// Changes a gateway in a text that has nothing but routes; none when it is not in it.
pub(super) fn change_gateway(text: &str, from: Ipv4Addr, to: Ipv4Addr) -> Option<String> {
    let gateway = |word: &str| (word.parse() == Ok(from)).then(|| to.to_string());
    let lines = text.split_inclusive('\n');
    let changed: String =
        lines.map(|line| if is_comment(line) { line.to_owned() } else { replace(line, gateway) }).collect();
    (changed != text).then_some(changed)
}

/// For each line of ifupdown's file the line at which its stanza begins.
fn stanzas(lines: &[&str]) -> Vec<usize> {
    const BEGINNINGS: [&str; 8] =
        ["iface", "auto", "mapping", "source", "source-directory", "no-auto-down", "no-scripts", "rename"];
    let mut begun = 0;
    let owner = |(number, line): (usize, &&str)| {
        let word = line.split_whitespace().next().unwrap_or_default();
        if BEGINNINGS.contains(&word) || word.starts_with("allow-") {
            begun = number;
        }
        begun
    };
    lines.iter().enumerate().map(owner).collect()
}

/// For each line of netplan's file the line at which its interface begins, which is the third key from
/// the root: `network`, the kind of interfaces, the interface.
fn interfaces(lines: &[&str]) -> Vec<usize> {
    let mut keys: Vec<(usize, usize)> = Vec::new();
    let owner = |(number, line): (usize, &&str)| {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if !content.trim_end().is_empty() && !content.starts_with('#') {
            let is_item = content.starts_with('-');
            // An item may stand as far to the left as the key that it belongs to.
            keys.retain(|(of, _)| *of < indent || (is_item && *of == indent));
            let is_key =
                content.split_once(':').is_some_and(|(_, rest)| rest.starts_with(char::is_whitespace))
                    || content.ends_with(':');
            if is_key && !is_item {
                keys.push((indent, number));
            }
        }
        keys.get(2).map_or(0, |(_, number)| *number)
    };
    lines.iter().enumerate().map(owner).collect()
}

/// The lines that configure one interface.
struct Block<'a> {
    form: Form,
    lines: &'a [&'a str],
}

impl Block<'_> {
    fn configures(&self, address: Ipv4Addr) -> bool {
        self.lines.iter().any(|line| gives(self.form, line, address))
    }

    fn changed(&self, change: &AddressChange, text: &mut String) {
        for line in self.lines {
            if is_comment(line) {
                text.push_str(line);
                continue;
            }
            let gives_address = gives(self.form, line, change.from);
            let is_mask = |line: &&str| self.mask_of(line, change).is_some_and(|of| of.prefix.is_some());
            let has_no_mask = !self.lines.iter().any(is_mask);
            let with_prefix = gives_address && has_no_mask && key(self.form, line) == Some("address");
            let of_network = self.mask_of(line, change);
            text.push_str(&replace(line, |word| match word.split_once('/') {
                Some((address, prefix)) if address.parse() == Ok(change.from) => {
                    // A rule may mean this one address, as /32.
                    let prefix = if gives_address { change.prefix.to_string() } else { prefix.to_owned() };
                    Some(format!("{}/{prefix}", change.to))
                }
                None if word.parse() == Ok(change.from) && with_prefix => {
                    Some(format!("{}/{}", change.to, change.prefix))
                }
                None if word.parse() == Ok(change.from) => Some(change.to.to_string()),
                None => {
                    let gateway = change.gateway.filter(|(from, _)| word.parse() == Ok(*from));
                    let gateway = gateway.map(|(_, to)| to.to_string());
                    gateway.or_else(|| of_network.as_ref()?.replaces(word))
                }
                Some(_) => None,
            }));
            if gives_address && has_no_mask && self.form == Form::Ifcfg && !line.contains('/') {
                let end = if line.ends_with('\n') { "" } else { "\n" };
                let suffix =
                    key(self.form, line).and_then(|key| key.strip_prefix("IPADDR")).unwrap_or_default();
                text.push_str(&format!("{end}PREFIX{suffix}={}\n", change.prefix));
            }
        }
    }

    /// What a line tells of the network of the address that is changed, as it is to be.
    fn mask_of(&self, line: &str, change: &AddressChange) -> Option<OfNetwork> {
        let key = key(self.form, line)?;
        let kind = match self.form {
            Form::Ifupdown => key,
            Form::Ifcfg => {
                // Several addresses are numbered, and so is what belongs to each.
                let giving = self.lines.iter().find(|line| gives(self.form, line, change.from))?;
                let suffix = self::key(self.form, giving)?.strip_prefix("IPADDR")?;
                key.strip_suffix(suffix)?
            }
            Form::Networkd | Form::Netplan | Form::Keyfile => return None,
        };
        let mask = u32::MAX.checked_shl(32_u32.saturating_sub(change.prefix.into())).unwrap_or(0);
        let network = change.to.to_bits() & mask;
        Some(match kind {
            "netmask" | "NETMASK" | "PREFIX" | "PREFIXLEN" => {
                OfNetwork { address: mask.into(), prefix: Some(change.prefix) }
            }
            "network" | "NETWORK" => OfNetwork { address: network.into(), prefix: None },
            "broadcast" | "BROADCAST" => OfNetwork { address: (network | !mask).into(), prefix: None },
            _ => return None,
        })
    }
}

/// A line's value that follows from an address and its prefix: as an address, or as a number of bits.
struct OfNetwork {
    address: Ipv4Addr,
    prefix: Option<u8>,
}

impl OfNetwork {
    fn replaces(&self, word: &str) -> Option<String> {
        if word.parse::<Ipv4Addr>().is_ok() {
            return Some(self.address.to_string());
        }
        self.prefix.filter(|_| word.parse::<u8>().is_ok()).map(|prefix| prefix.to_string())
    }
}

/// Whether a line gives its interface this address.
fn gives(form: Form, line: &str, address: Ipv4Addr) -> bool {
    if is_comment(line) {
        return false;
    }
    let with_prefix = |word: &str| word.split_once('/').is_some_and(|(own, _)| own.parse() == Ok(address));
    let is_it = |word: &str| word.parse() == Ok(address) || with_prefix(word);
    let is_key = |fits: fn(&str) -> bool| key(form, line).is_some_and(fits);
    match form {
        Form::Ifupdown => {
            let adds = |line: &str| words(line).any(|word| ["addr", "address", "ifconfig"].contains(&word));
            (is_key(|key| key == "address") || (is_key(|key| key.ends_with("up")) && adds(line)))
                && words(line).any(is_it)
        }
        Form::Networkd => is_key(|key| key == "Address") && words(line).any(is_it),
        Form::Keyfile => is_key(|key| key.starts_with("address")) && words(line).any(is_it),
        Form::Ifcfg => is_key(|key| key.starts_with("IPADDR")) && words(line).any(is_it),
        Form::Netplan => {
            let is_item = line.trim_start().starts_with('-');
            (line.contains("addresses") && words(line).any(with_prefix))
                || (is_item && words(line).find(|word| *word != "-").is_some_and(with_prefix))
        }
    }
}

/// The word before a line's value.
fn key(form: Form, line: &str) -> Option<&str> {
    match form {
        Form::Ifupdown => line.split_whitespace().next(),
        _ => line.split_once('=').map(|(key, _)| key.trim()),
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with(['#', ';'])
}

/// The words of a line: addresses, with a prefix or without, names and numbers.
fn words(line: &str) -> impl Iterator<Item = &str> {
    pieces(line).filter(|(is_word, _)| *is_word).map(|(_, word)| word)
}

/// A line in which words are replaced.
fn replace(line: &str, other: impl Fn(&str) -> Option<String>) -> String {
    let piece = |(is_word, piece): (bool, &str)| {
        let other = if is_word { other(piece) } else { None };
        other.unwrap_or_else(|| piece.to_owned())
    };
    pieces(line).map(piece).collect()
}

/// A line in pieces: words, and what is between them.
fn pieces(line: &str) -> impl Iterator<Item = (bool, &str)> {
    let is_of_word = |of: char| of.is_alphanumeric() || "./:_-".contains(of);
    let mut rest = line;
    iter::from_fn(move || {
        let is_word = is_of_word(rest.chars().next()?);
        let end = rest.find(|of| is_of_word(of) != is_word).unwrap_or(rest.len());
        let mut piece = &rest[..end];
        // YAML ends a key with a colon.
        if is_word && let Some(key) = piece.strip_suffix(':').filter(|key| !key.is_empty()) {
            piece = key;
        }
        rest = &rest[piece.len()..];
        Some((is_word, piece))
    })
}

#[cfg(test)]
mod tests;
