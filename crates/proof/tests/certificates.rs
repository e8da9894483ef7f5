//! Certificates that end, that are another site's, and that are renewed while everything runs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::Command;

use lifeboat_proof::{LoopDisk, Programs, Site, assert_same, run, scratch, wait_for};

const MIB: u64 = 1 << 20;

fn lifeboat(words: &[&str]) {
    run(Programs::find().lifeboat.to_str().unwrap(), words.iter().copied());
}

/// Issues an agent's certificate for the server of the site, which the agent takes at once.
fn issue(site: &Site, authority: &Path, validity: &str) {
    let server = site.json(["server", "show", "source"])["id"].as_str().unwrap().to_owned();
    let (authority, place) = (authority.to_str().unwrap(), site.dir.join("agent/credentials"));
    let place = place.to_str().unwrap();
    lifeboat(&[
        "certificate",
        "issue",
        "--authority",
        authority,
        "--for",
        "agent",
        "--server",
        &server,
        "--validity",
        validity,
        place,
    ]);
    look_again(site);
}

/// Has the agent look at its settings and its certificate.
fn look_again(site: &Site) {
    if let Some(agent) = site.role("agent") {
        let _ = Command::new("kill").args(["-HUP", &agent.to_string()]).status();
    }
}

fn await_event(site: &Site, code: &str) -> String {
    wait_for(&format!("the event {code}"), || {
        look_again(site);
        let event = site.events().into_iter().find(|event| event["code"] == code)?;
        Some(format!("{} {}", event["message"].as_str()?, event["next_step"].as_str()?))
    })
}

fn await_log(site: &Site, text: &str) {
    wait_for(&format!("the agent to say {text:?}"), || {
        fs::read_to_string(site.dir.join("logs/agent.log")).unwrap().contains(text).then_some(())
    });
}

#[test]
fn a_certificate_that_ends_is_told_before_and_a_new_one_is_taken_while_the_agent_runs() {
    let disk = LoopDisk::new(16 * MIB);
    disk.write(0, 100, 1);
    let site = Site::start(&[&disk], "1s");
    site.await_first_point();
    let authority = site.dir.join("authority");
    let server = site.json(["server", "show", "source"])["id"].clone();

    issue(&site, &authority, "60s");
    let told = await_event(&site, "certificate_ends_soon");
    assert!(
        told.contains("ends at") && told.contains("lifeboat certificate issue --for agent --server"),
        "{told}"
    );
    await_log(&site, "expired");
    disk.write(200, 100, 2);
    issue(&site, &authority, "1d");
    let point = site.await_point_taken("a point with the new certificate");
    let out = tempfile::tempdir_in(scratch()).unwrap();
    assert_same(&site.copy_out(&point, out.path())[0], &disk.device);
    assert_eq!(site.json(["server", "list"])[0]["id"], server, "it is the same server");

    // One of another site.
    let other = tempfile::tempdir().unwrap();
    let elsewhere = other.path().join("authority");
    lifeboat(&["authority", "create", "--name", "elsewhere", elsewhere.to_str().unwrap()]);
    issue(&site, &elsewhere, "1d");
    await_log(&site, "another site");
    issue(&site, &authority, "1d");
    site.await_point_taken("a point with a certificate of this site");
}
