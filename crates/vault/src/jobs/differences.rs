//! What differs between a drill and the one before it, a sentence each: a machine that takes twice as long, or a
//! probe that does not pass any more, is seen before the day on which it matters.

use std::collections::BTreeMap;

use lifeboat_api::DrillReport;
use lifeboat_compute::{Attachment, DiskBus, Firmware, MachineDisk, MachineSpec, Nic, NicModel};
use lifeboat_model::Milliseconds;

/// Two starts are told apart when one took this part more than the other, in percent, and this many milliseconds.
const SLOWER_PERCENT: u64 = 125;
const SLOWER_MS: u64 = 2_000;

/// A drill as far as it is compared: what it has shown, and the machine.
#[derive(Clone, Copy)]
pub(super) struct Drill<'a> {
    pub report: &'a DrillReport,
    pub machine: Option<&'a MachineSpec>,
}

/// What is different now. Empty when nothing is that matters.
pub(super) fn differences(now: Drill<'_>, before: Drill<'_>) -> Vec<String> {
    let mut found = Vec::new();
    outcome(now.report, before.report, &mut found);
    probes(now.report, before.report, &mut found);
    let mut differs = |what: &str, now: String, before: String| {
        if now != before {
            found.push(format!("{what}: {now}; before: {before}."));
        }
    };
    differs(
        "What its point guarantees",
        format!("{}-consistent", now.report.point_kind),
        format!("{}-consistent", before.report.point_kind),
    );
    differs("What ran it", now.report.compute.clone(), before.report.compute.clone());
    if let (Some(now), Some(before)) = (now.machine, before.machine) {
        differs("Processors", now.cpus.to_string(), before.cpus.to_string());
        differs("Memory", format!("{} MiB", now.memory_mib), format!("{} MiB", before.memory_mib));
        differs("Firmware", firmware(now.firmware).into(), firmware(before.firmware).into());
        differs("Disks", disks(now), disks(before));
        differs("Network cards", cards(now), cards(before));
    }
    found
}

fn outcome(now: &DrillReport, before: &DrillReport, found: &mut Vec<String>) {
    match (now.up, before.up) {
        (true, false) => found.push("The machine came up; before it did not.".to_owned()),
        (false, true) => found.push("The machine did not come up; before it did.".to_owned()),
        _ => {}
    }
    if let (Some(now), Some(before)) = (now.boot_ms, before.boot_ms) {
        let (less, more) = (now.min(before), now.max(before));
        if more >= less + SLOWER_MS && more * 100 > less * SLOWER_PERCENT {
            found.push(format!(
                "The machine was up after {}; before after {}.",
                Milliseconds(now),
                Milliseconds(before)
            ));
        }
    }
}

fn probes(now: &DrillReport, before: &DrillReport, found: &mut Vec<String>) {
    let by_name = |report: &DrillReport| -> BTreeMap<String, bool> {
        report.probes.iter().map(|probe| (probe.probe.clone(), probe.passed)).collect()
    };
    let (now, before) = (by_name(now), by_name(before));
    for (probe, passed) in &now {
        found.extend(match (passed, before.get(probe)) {
            (true, Some(false)) => Some(format!("{probe}: passed; before it did not.")),
            (false, Some(true)) => Some(format!("{probe}: not passed; before it did.")),
            (_, None) => Some(format!("{probe}: was not probed before.")),
            _ => None,
        });
    }
    let gone = before.keys().filter(|probe| !now.contains_key(*probe));
    found.extend(gone.map(|probe| format!("{probe}: is not probed any more.")));
}

const fn firmware(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Bios => "BIOS",
        Firmware::Uefi => "UEFI",
    }
}

fn disks(machine: &MachineSpec) -> String {
    let disk = |disk: &MachineDisk| {
        let bus = match disk.bus {
            DiskBus::Virtio => "virtio",
            DiskBus::Sata => "SATA",
            DiskBus::Nvme => "NVMe",
        };
        format!("disk {} with {} MiB by {bus}", disk.number, disk.bytes >> 20)
    };
    listed(machine.disks.iter().map(disk))
}

fn cards(machine: &MachineSpec) -> String {
    let card = |nic: &Nic| {
        let model = match nic.model {
            NicModel::Virtio => "virtio",
            NicModel::E1000e => "e1000e",
        };
        let place = match &nic.attachment {
            Attachment::Isolated { .. } => "a network of its own".to_owned(),
            Attachment::Shared { network, .. } => format!("network {}", network.name),
            Attachment::Bridge { name, .. } => format!("bridge {name}"),
        };
        format!("{model} in {place}")
    };
    listed(machine.nics.iter().map(card))
}

fn listed(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<_> = parts.collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use lifeboat_api::ProbeResult;
    use lifeboat_model::{PointId, PointKind};

    use super::*;

    fn report() -> DrillReport {
        let probe = |probe: &str, passed| ProbeResult {
            probe: probe.into(),
            passed,
            after_ms: passed.then_some(9_000),
            message: None,
        };
        DrillReport {
            server_name: "db1".into(),
            point: PointId::new(1),
            point_time: "2026-11-26T09:00:00Z".parse().unwrap_or_default(),
            point_kind: PointKind::Crash,
            point_age_ms: 4_000,
            up: true,
            verdict: "The machine is up.".into(),
            probes: vec![probe("TCP port 5432", true), probe("SSH greeting on port 22", true)],
            first_instruction_ms: Some(100),
            boot_ms: Some(10_000),
            compute: "QEMU with KVM".into(),
            console: String::new(),
            screenshot: None,
            previous: None,
            differences: Vec::new(),
            note: None,
        }
    }

    fn between(now: &DrillReport, before: &DrillReport) -> Vec<String> {
        differences(Drill { report: now, machine: None }, Drill { report: before, machine: None })
    }

    #[test]
    fn drills_that_went_alike_do_not_differ() {
        let before = report();
        let mut now = report();
        now.point = PointId::new(2);
        now.point_age_ms = 1;
        for boot_ms in [11_900, 8_100, 12_400] {
            now.boot_ms = Some(boot_ms);
            assert_eq!(between(&now, &before), [""; 0]);
        }
    }

    #[test]
    fn what_went_otherwise_is_said() {
        let before = report();
        let mut now = report();
        now.boot_ms = Some(12_600);
        assert_eq!(between(&now, &before), ["The machine was up after 12.6 s; before after 10.0 s."]);
        assert_eq!(between(&before, &now), ["The machine was up after 10.0 s; before after 12.6 s."]);

        (now.up, now.boot_ms, now.point_kind) = (false, None, PointKind::Application);
        now.probes[0].passed = false;
        now.probes[1].probe = "HTTP port 80".into();
        now.compute = "QEMU in emulation".into();
        assert_eq!(
            between(&now, &before),
            [
                "The machine did not come up; before it did.",
                "HTTP port 80: was not probed before.",
                "TCP port 5432: not passed; before it did.",
                "SSH greeting on port 22: is not probed any more.",
                "What its point guarantees: application-consistent; before: crash-consistent.",
                "What ran it: QEMU in emulation; before: QEMU with KVM.",
            ]
        );
    }
}
