//! Disks are taken out of protection, in each of the ways in which an operator would, and put back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;

use lifeboat_proof::{LoopDisk, Site, assert_same, scratch, wait_for};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// The numbers of the disks of a point.
fn disks_of(point: &Value) -> Vec<u64> {
    let disks = point["disks"].as_array().into_iter().flatten();
    disks.map(|disk| disk["disk"].as_u64().unwrap()).collect()
}

/// Waits for a point of just these disks.
fn await_point_of(site: &Site, disks: &[u64]) -> Value {
    wait_for(&format!("a point of the disks {disks:?}"), || {
        let point = site.newest_point();
        (disks_of(&point) == disks).then_some(point)
    })
}

fn protected(site: &Site) -> Vec<u64> {
    let server = site.json(["server", "show", "source"]);
    server["disks"].as_array().unwrap().iter().map(|disk| disk["number"].as_u64().unwrap()).collect()
}

#[test]
fn points_go_on_without_a_disk_that_is_taken_out_and_with_it_when_it_is_back() {
    let (one, two) = (LoopDisk::new(16 * MIB), LoopDisk::new(24 * MIB));
    one.write(0, 1000, 1);
    two.write(0, 2000, 2);
    let mut site = Site::start(&[&one, &two], "1s");
    await_point_of(&site, &[0, 1]);

    // While the agent runs.
    let settings = site.dir.join("agent/agent.toml");
    let both = fs::read_to_string(&settings).unwrap();
    let alone = both.replace(&format!("\"{}\"", two.device.display()), "");
    assert_ne!(alone, both);
    let change = |text: &str| {
        // As an editor does it: the agent never sees half of it.
        fs::write(settings.with_extension("new"), text).unwrap();
        fs::rename(settings.with_extension("new"), &settings).unwrap();
    };
    change(&alone);
    await_point_of(&site, &[0]);
    assert_eq!(protected(&site), [0]);
    let told =
        wait_for("news of it", || site.events().into_iter().find(|event| event["code"] == "disk_removed"));
    assert!(told["message"].as_str().unwrap().contains("is not protected any more"));
    one.write(100, 200, 3);
    two.write(100, 200, 4);
    change(&both);
    await_point_of(&site, &[0, 1]);
    assert_eq!(protected(&site), [0, 1]);
    let point = site.take_point("crash");
    let out = tempfile::tempdir_in(scratch()).unwrap();
    let images = site.copy_out(&point, out.path());
    assert_same(&images[0], &one.device);
    assert_same(&images[1], &two.device);

    // While it is stopped: a trial that is started again with fewer disks.
    site.stop();
    site.protect(&[&one]);
    site.resume();
    await_point_of(&site, &[0]);
    assert_eq!(protected(&site), [0]);
    let pins = wait_for("the tracking of the disk to end", || {
        let pins = fs::read_dir("/sys/fs/bpf").unwrap().map(|entry| entry.unwrap().path());
        let of_site: Vec<_> = pins.filter(|path| both.contains(path.to_str().unwrap())).collect();
        let names = fs::read_dir(&of_site[0]).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        (!names.iter().any(|name| name.contains("d1-"))).then_some(names)
    });
    assert!(pins.iter().any(|name| name.contains("d0-")), "{pins:?}");
    one.write(2000, 300, 5);
    let point = site.take_point("crash");
    assert_same(&site.copy_out(&point, out.path())[0], &one.device);
    assert_eq!(site.json(["verify", "source"])["report"]["good"], true);
}

#[test]
fn a_disk_of_which_the_agent_knows_nothing_is_removed_by_command() {
    let (one, two) = (LoopDisk::new(16 * MIB), LoopDisk::new(24 * MIB));
    one.write(0, 1000, 1);
    let mut site = Site::start(&[&one, &two], "1s");
    await_point_of(&site, &[0, 1]);
    site.stop();
    // The agent is installed anew and has the first disk only: it cannot know that there was another.
    fs::remove_file(site.dir.join("agent/state/record.json")).unwrap();
    site.protect(&[&one]);
    site.resume();
    let reason = wait_for("the vault to say what to do", || {
        let server = site.json(["server", "show", "source"]);
        let reason = server["reason"].as_str()?.to_owned();
        reason.contains("lifeboat server remove-disk SERVER 1").then_some(reason)
    });
    assert!(reason.contains("disk 1 is in the server's newest point"), "{reason}");
    site.json(["server", "remove-disk", "source", "1"]);
    await_point_of(&site, &[0]);
    assert_eq!(protected(&site), [0]);
    let again = site.lifeboat(["server", "remove-disk", "source", "1"]);
    let said = String::from_utf8_lossy(&again.stderr) + String::from_utf8_lossy(&again.stdout);
    assert_eq!(again.status.code(), Some(2), "{said}");
    assert!(said.contains("protected disk"), "{said}");
}
