//! Names of network cards, which the configuration of the original means: the machine's cards sit in other
//! slots than the original's, so that udev names them otherwise.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use lifeboat_model::CardChange;

use super::links::{IFF_UP, Links};
use crate::facts::host::{Host, name};
use crate::facts::network::{CLASS, mac, number};

/// Time between two looks at the cards.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// udev may give a name that was just taken away back to a card, as an alternative one.
const ATTEMPTS: usize = 5;

/// A card that is there, and the name that it shall have.
struct Card<'a> {
    mac: String,
    index: u32,
    /// Its name before anything is done.
    name: String,
    wanted: &'a str,
    is_up: bool,
}

/// Names the cards; answers what is wrong. `within` bounds how long cards are waited for.
pub(super) fn name_cards(host: &Host, changes: &[CardChange], within: Duration) -> Vec<String> {
    let wanted: Vec<(String, &str)> = changes
        .iter()
        .filter_map(|change| Some((change.mac.to_string(), change.name.as_ref()?.as_str())))
        .collect();
    let cards = await_cards(host, &wanted, within);
    let missing = wanted.iter().filter(|(mac, _)| cards.iter().all(|card| card.mac != *mac));
    let mut troubles: Vec<_> = missing
        .map(|(mac, name)| format!("no network card has the address {mac}, which is to be named {name}"))
        .collect();
    if cards.iter().all(|card| card.name == card.wanted) {
        return troubles;
    }
    match Links::open() {
        Ok(links) => troubles.extend(rename(host, &links, &cards)),
        Err(error) => troubles.push(format!("network cards cannot be named: {error}")),
    }
    troubles
}

/// The cards, once all of them are there and udev has done with them, or the time is over.
fn await_cards<'a>(host: &Host, wanted: &[(String, &'a str)], within: Duration) -> Vec<Card<'a>> {
    let begun = Instant::now();
    loop {
        let cards: Vec<_> = wanted.iter().filter_map(|(mac, name)| find(host, mac, name)).collect();
        let is_complete =
            cards.len() == wanted.len() && cards.iter().all(|card| is_settled(host, card.index));
        if is_complete || begun.elapsed() >= within {
            return cards;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn find<'a>(host: &Host, address: &str, wanted: &'a str) -> Option<Card<'a>> {
    let names = host.entries(CLASS).into_iter().map(|entry| name(&entry));
    let fitting = names.filter(|name| mac(host, name).as_deref() == Some(address));
    // A bridge or a VLAN of the card has the card's address, and no device.
    let numbered = fitting.filter_map(|name| {
        let has_no_device = !host.has(format!("{CLASS}/{name}/device"));
        Some((has_no_device, number(host, &name)?, name))
    });
    let (_, index, name) = numbered.min()?;
    let flags = host.word(format!("{CLASS}/{name}/flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
    Some(Card { mac: address.to_owned(), index, name, wanted, is_up: flags & IFF_UP != 0 })
}

/// Whether udev, where there is one, has named a card already: it would name it after us otherwise.
fn is_settled(host: &Host, index: u32) -> bool {
    !host.has("/run/udev/control")
        || host.text(format!("/run/udev/data/n{index}")).is_ok_and(|text| !text.contains("ID_RENAMING=1"))
}

/// Gives all cards their names, through others where they have each other's.
fn rename(host: &Host, links: &Links, cards: &[Card<'_>]) -> Vec<String> {
    let wanted: BTreeSet<&str> = cards.iter().map(|card| card.wanted).collect();
    let changed: Vec<_> = cards.iter().filter(|card| card.name != card.wanted).collect();
    let mut troubles = Vec::new();
    for card in &changed {
        if card.is_up
            && let Err(error) = links.set_up(card.index, false)
        {
            troubles.push(format!("{} cannot be taken down for another name: {error}", card.name));
        }
        if wanted.contains(card.name.as_str()) {
            // Where it cannot be, the final name cannot either.
            let _ = links.rename(card.index, &format!("lifeboat{}", card.index));
        }
    }
    let mut named = Vec::new();
    for card in &changed {
        match give_name(links, card, cards) {
            Ok(()) => {
                tracing::info!("{}, which was {}, is named {}", card.mac, card.name, card.wanted);
                named.push(card.wanted);
            }
            Err(error) => {
                let why = match error.kind() {
                    ErrorKind::AlreadyExists => "another interface has that name".to_owned(),
                    _ => error.to_string(),
                };
                let (mac, name, wanted) = (&card.mac, &card.name, card.wanted);
                troubles.push(format!("the network card {mac}, {name}, cannot be named {wanted}: {why}"));
                // Rather its old name than none that anybody knows, if it was taken from it.
                let _ = links.rename(card.index, name);
            }
        }
    }
    for card in &changed {
        if card.is_up
            && let Err(error) = links.set_up(card.index, true)
        {
            troubles.push(format!("the network card {} cannot be brought up again: {error}", card.mac));
        }
    }
    troubles.extend(named.into_iter().filter_map(|name| tell_udev(host, name).err()));
    troubles
}

/// Names a card. Its name may be an alternative one of any of them, which udev made of where that sits.
fn give_name(links: &Links, card: &Card<'_>, all: &[Card<'_>]) -> io::Result<()> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match links.rename(card.index, card.wanted) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && attempts < ATTEMPTS => {
                for other in all {
                    // Most have no such name.
                    let _ = links.drop_alternative(other.index, card.wanted);
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            named => return named,
        }
    }
}

/// As if the card were added under its name, so that what waits for a card of that name takes it.
fn tell_udev(host: &Host, name: &str) -> Result<(), String> {
    if !host.has("/run/udev/control") {
        return Ok(());
    }
    fs::write(host.path(format!("{CLASS}/{name}/uevent")), "add")
        .map_err(|error| format!("udev cannot be told of the name {name}: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    #[test]
    fn a_bridge_that_has_its_card_s_address_is_not_taken_for_the_card() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), || {});
        for (name, index, flags) in [("br0", "2", "0x1003"), ("enp0s2", "3", "0x1002")] {
            let place = host.path(format!("{CLASS}/{name}"));
            fs::create_dir_all(&place).unwrap();
            for (file, text) in [("address", "52:54:00:12:34:56"), ("ifindex", index), ("flags", flags)] {
                fs::write(place.join(file), format!("{text}\n")).unwrap();
            }
        }
        fs::create_dir(host.path(format!("{CLASS}/enp0s2/device"))).unwrap();
        let card = find(&host, "52:54:00:12:34:56", "eno1").unwrap();
        assert_eq!((card.name.as_str(), card.index, card.is_up), ("enp0s2", 3, false));
        assert!(find(&host, "52:54:00:12:34:57", "eno1").is_none());
    }

    #[test]
    fn a_card_is_left_to_udev_until_that_has_named_it() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), || {});
        assert!(is_settled(&host, 7), "there is no udev");
        fs::create_dir_all(root.path().join("run/udev/data")).unwrap();
        fs::write(root.path().join("run/udev/control"), "").unwrap();
        assert!(!is_settled(&host, 7));
        let known = |text| fs::write(root.path().join("run/udev/data/n7"), text).unwrap();
        known("E:ID_RENAMING=1\n");
        assert!(!is_settled(&host, 7));
        known("E:ID_NET_NAME=enp0s2\n");
        assert!(is_settled(&host, 7));
    }
}
