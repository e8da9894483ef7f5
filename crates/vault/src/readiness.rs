//! Whether a server would start at the recovery site, judged while it is alive. Pure.
//!
//! Each rule looks at what is observed and answers with findings: what, why it matters, what to do. A
//! finding that prevents the start makes the server not ready; all others are remarks.

mod guest;

use jiff::{SignedDuration, Timestamp};
use lifeboat_api::{DiskBus, Finding, Firmware, NetworkCard, Protection, ReadinessVerdict, Server, Target};
use lifeboat_compute::{Acceleration, Capabilities};
use lifeboat_model::{ByteCount, Milliseconds};
use lifeboat_wire::facts::{FileSystem, ServerFacts};

use crate::catalog::FactsRow;
use crate::facts::unknown_facts;

/// Facts that were not heard again for so long are old: an agent repeats them every six hours.
const FACTS_OLD: SignedDuration = SignedDuration::from_hours(24);
/// What a machine takes of the recovery host beside its own memory.
const OVERHEAD_MIB: u64 = 96;
/// What a machine writes goes to the recovery site; a tenth of its disks should fit.
const WRITTEN_PART: u64 = 10;
/// How much slower an emulated machine is than its source.
const EMULATION_SLOWER: (u64, u64) = (5, 20);

/// What is known of a server and of where it would start.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The vault's clock.
    pub now: Timestamp,
    /// The server.
    pub server: &'a Server,
    /// What its agent has found out; none when it has sent nothing.
    pub facts: Option<&'a FactsRow>,
    /// The machine that it would become in a failover.
    pub target: &'a Target,
    /// What the recovery host can do, or why it cannot run machines.
    pub host: Result<&'a Capabilities, &'a str>,
    /// Room for what machines write, in bytes.
    pub free_bytes: Option<u64>,
}

/// All findings, those that prevent the start first.
#[must_use]
pub fn judge(observed: &Observed<'_>) -> Vec<Finding> {
    let mut findings = points(observed);
    findings.extend(host(observed));
    findings.extend(memory_and_processors(observed));
    findings.extend(room(observed));
    match observed.facts {
        Some(row) => {
            findings.extend(age_of_facts(observed, row));
            findings.extend(disks(&row.facts));
            findings.extend(guest::judge(observed, &row.facts));
            findings.extend(unknown(&row.facts));
        }
        None => findings.push(no_facts(observed)),
    }
    findings.sort_by_key(|finding| !finding.prevents);
    findings
}

/// All findings in one word.
#[must_use]
pub fn verdict(findings: &[Finding]) -> ReadinessVerdict {
    if findings.iter().any(|finding| finding.prevents) {
        ReadinessVerdict::NotReady
    } else if findings.is_empty() {
        ReadinessVerdict::Ready
    } else {
        ReadinessVerdict::ReadyWithRemarks
    }
}

/// A finding that prevents the start.
fn prevents(code: &str, what: String, why: &str, next_step: String) -> Finding {
    Finding { prevents: true, ..remark(code, what, why, next_step) }
}

fn remark(code: &str, what: String, why: &str, next_step: String) -> Finding {
    Finding { code: code.to_owned(), prevents: false, what, why: why.to_owned(), next_step }
}

fn points(observed: &Observed<'_>) -> Vec<Finding> {
    let server = observed.server;
    let name = &server.name;
    let Some(rpo) = &server.rpo else {
        return vec![prevents(
            "no_point",
            format!("{name} has no recovery point yet."),
            "There is nothing that it could start from.",
            format!("Wait for the end of its first copy: lifeboat server show {name}."),
        )];
    };
    if server.state == Protection::FailedOver {
        return vec![remark(
            "failed_over",
            format!("{name} runs at the recovery site already."),
            "What is judged here is the source as it was before.",
            String::new(),
        )];
    }
    let late_ms = server.policy.interval.duration().as_millis().saturating_mul(10).max(60_000);
    let is_late = u128::from(rpo.age_ms) > late_ms;
    if !is_late && !matches!(server.state, Protection::Stalled | Protection::Disconnected) {
        return Vec::new();
    }
    let reason = server.reason.as_ref().map(|reason| format!(" {reason}")).unwrap_or_default();
    vec![remark(
        "point_old",
        format!(
            "The newest recovery point is {} old, gated by {}.{reason}",
            Milliseconds(rpo.age_ms),
            rpo.gated_by
        ),
        "A failover would lose everything that was written since.",
        format!("Mend what holds it up: lifeboat server show {name}, lifeboat event list --server {name}."),
    )]
}

fn host(observed: &Observed<'_>) -> Vec<Finding> {
    let host = match observed.host {
        Ok(host) => host,
        Err(why) => {
            return vec![prevents(
                "no_hypervisor",
                format!("The recovery host cannot run machines: {}.", why.trim_end_matches('.')),
                "Neither a drill nor a failover can start there.",
                "On the vault's machine: apt install qemu-system-x86 ovmf (or dnf install qemu-kvm edk2-ovmf).".into(),
            )];
        }
    };
    let mut findings = Vec::new();
    let wanted = match observed.target.firmware {
        Firmware::Bios => lifeboat_compute::Firmware::Bios,
        Firmware::Uefi => lifeboat_compute::Firmware::Uefi,
    };
    if !host.firmwares.contains(&wanted) {
        findings.push(prevents(
            "firmware_missing",
            "The machine boots by UEFI and the recovery host has no UEFI firmware for machines.".into(),
            "The machine cannot be started.",
            "On the vault's machine: apt install ovmf (or dnf install edk2-ovmf).".into(),
        ));
    }
    if let Acceleration::Tcg { why_not_kvm } = &host.acceleration {
        findings.push(emulated(observed, why_not_kvm));
    }
    findings
}

fn emulated(observed: &Observed<'_>, why_not_kvm: &str) -> Finding {
    let (least, most) = EMULATION_SLOWER;
    let boot_ms = observed.facts.and_then(|row| row.facts.boot_ms.known().copied());
    let boot = boot_ms.map(|ms| {
        let (from, to) = (Milliseconds(ms.saturating_mul(least)), Milliseconds(ms.saturating_mul(most)));
        format!(" Its start takes {} here and may take {from} to {to} there.", Milliseconds(ms))
    });
    let within_ms = observed.target.up_within.duration().as_millis();
    let name = &observed.server.name;
    let too_short = boot_ms.filter(|ms| u128::from(ms.saturating_mul(most)) > within_ms);
    let next_step = too_short.map_or_else(
        || "Enable virtualisation in the recovery host's firmware (VT-x or AMD-V), or in the hypervisor that it runs in.".to_owned(),
        |ms| {
            let seconds = ms.saturating_mul(most) / 1000;
            format!("Give it more time: lifeboat target set {name} --up-within {seconds}s; or enable virtualisation on the recovery host.")
        },
    );
    remark(
        "kvm_unavailable",
        format!(
            "The recovery host emulates the processor, because KVM cannot be used: {}.",
            why_not_kvm.trim_end_matches('.')
        ),
        &format!(
            "Everything on the machine runs {least} to {most} times slower.{}",
            boot.unwrap_or_default()
        ),
        next_step,
    )
}

fn memory_and_processors(observed: &Observed<'_>) -> Vec<Finding> {
    let (target, name) = (observed.target, &observed.server.name);
    let mut findings = Vec::new();
    if let Ok(host) = observed.host {
        let free = host.memory_mib_free;
        if target.memory_mib.saturating_add(OVERHEAD_MIB) > free {
            findings.push(prevents(
                "memory_too_large",
                format!(
                    "The machine has {} MiB of memory, of which the recovery host has {free} MiB free.",
                    target.memory_mib
                ),
                "The machine cannot be started.",
                format!(
                    "lifeboat target set {name} --memory {}, or give the recovery host more memory.",
                    free.saturating_sub(OVERHEAD_MIB) / 64 * 64
                ),
            ));
        }
        if target.cpus > host.cpus {
            findings.push(remark(
                "processors_shared",
                format!("The machine has {} processors and the recovery host {}.", target.cpus, host.cpus),
                "They take turns, which is slower than fewer of them.",
                format!("lifeboat target set {name} --cpus {}.", host.cpus),
            ));
        }
    }
    let Some(row) = observed.facts else { return findings };
    if let Some(bytes) = row.facts.memory_bytes.known().filter(|bytes| target.memory_mib < **bytes >> 20) {
        findings.push(remark(
            "less_memory",
            format!("The machine has {} MiB of memory and the source {} MiB.", target.memory_mib, bytes >> 20),
            "Programs that are set up for the source's memory, such as databases with large pages, may not start.",
            "Give the recovery host more memory, or set those programs up for less.".into(),
        ));
    }
    if let Some(cpus) = row.facts.cpus.known().filter(|cpus| target.cpus < **cpus) {
        findings.push(remark(
            "fewer_processors",
            format!("The machine has {} processors and the source {cpus}.", target.cpus),
            "It does less work in the same time.",
            String::new(),
        ));
    }
    findings
}

fn room(observed: &Observed<'_>) -> Option<Finding> {
    let free = observed.free_bytes?;
    let disks: u64 = observed.server.disks.iter().map(|disk| disk.bytes).fold(0, u64::saturating_add);
    (free < disks / WRITTEN_PART).then(|| {
        remark(
            "little_room",
            format!(
                "The disks have {} and there are {} free for what the machine writes.",
                ByteCount(disks),
                ByteCount(free)
            ),
            "When the room is used up, the machine's writes fail.",
            "Give the file system of the vault's state directory more room.".into(),
        )
    })
}

fn no_facts(observed: &Observed<'_>) -> Finding {
    remark(
        "facts_missing",
        format!("The agent of {} has not told what server it runs on.", observed.server.name),
        "Whether the guest would find its disks and its network cannot be judged, and the machine is not made like its source.",
        "Bring the agent up to date and see that it runs: systemctl status lifeboat-agent.".into(),
    )
}

fn age_of_facts(observed: &Observed<'_>, row: &FactsRow) -> Option<Finding> {
    let age = observed.now.duration_since(row.received);
    (age > FACTS_OLD && observed.server.state != Protection::FailedOver).then(|| {
        remark(
            "facts_old",
            format!(
                "What is known of the server is {} old.",
                Milliseconds(u64::try_from(age.as_millis()).unwrap_or(0))
            ),
            "It may have changed since.",
            "See that its agent runs and reaches the process server: systemctl status lifeboat-agent.".into(),
        )
    })
}

fn unknown(facts: &ServerFacts) -> Option<Finding> {
    let unknown = unknown_facts(facts);
    (!unknown.is_empty()).then(|| {
        remark(
            "facts_unknown",
            format!("Not all could be found out: {}.", unknown.join("; ")),
            "What depends on it is not judged.",
            String::new(),
        )
    })
}

/// Disks that the system needs and that are not copied.
fn disks(facts: &ServerFacts) -> Vec<Finding> {
    let file_systems = facts.file_systems.known().map(Vec::as_slice).unwrap_or_default();
    file_systems.iter().filter_map(disk).collect()
}

fn disk(file_system: &FileSystem) -> Option<Finding> {
    let FileSystem { mount_point, unprotected, .. } = file_system;
    let is_root = mount_point == "/";
    let lies = format!("{mount_point} lies on {}", unprotected.join(" and "));
    let protect = "Name its disk in `disks` of the agent's settings (/dev/disk/by-id/...)";
    if file_system.network && file_system.needed {
        return Some(remark(
            "network_file_system",
            format!("{mount_point} comes over the network, from {}.", file_system.source),
            "In a drill nothing answers there, and the start may wait for it for minutes.",
            format!(
                "In /etc/fstab give {mount_point} the options _netdev,nofail,x-systemd.mount-timeout=30."
            ),
        ));
    }
    if unprotected.is_empty() {
        return None;
    }
    Some(if is_root {
        prevents(
            "disk_not_protected",
            format!("{lies}, which is not protected."),
            "The system itself is not in the copy.",
            format!("{protect}."),
        )
    } else if file_system.needed {
        prevents(
            "disk_not_protected",
            format!("{lies}, which is not protected, and /etc/fstab needs it."),
            "The copy's start waits for it and ends in the emergency shell.",
            format!(
                "{protect}; or, if it can be missing, give {mount_point} the option nofail in /etc/fstab."
            ),
        )
    } else {
        remark(
            "disk_left_behind",
            format!("{lies}, which is not protected."),
            "The copy is without it.",
            format!("{protect}, if the copy needs it."),
        )
    })
}

/// The words of `lifeboat target set`.
const fn bus_word(bus: DiskBus) -> &'static str {
    match bus {
        DiskBus::Virtio => "virtio",
        DiskBus::Sata => "sata",
        DiskBus::Nvme => "nvme",
    }
}

const fn card_word(card: NetworkCard) -> &'static str {
    match card {
        NetworkCard::Virtio => "virtio",
        NetworkCard::E1000e => "e1000e",
    }
}

#[cfg(test)]
mod tests;
