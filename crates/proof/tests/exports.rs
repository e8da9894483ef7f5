//! Exports whose vault or whose own program is killed in the middle.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lifeboat_proof::{LoopDisk, Programs, Site, run, scratch, wait_for};

const MIB: u64 = 1 << 20;

/// A site with a disk that takes a while to export.
fn site_with_disk() -> (Site, LoopDisk) {
    let disk = LoopDisk::new(512 * MIB);
    for first in (0..125_000).step_by(5_000) {
        disk.write(first, 5_000, first + 1);
    }
    let site = Site::start(&[&disk], "5s");
    site.await_first_point();
    (site, disk)
}

/// An export whose `qemu-img` is stopped in the middle.
struct Halfway {
    export: Child,
    copying: u32,
}

impl Halfway {
    fn start(site: &Site, out: &Path, name: &str) -> Self {
        let mut command = Command::new(Programs::find().lifeboat);
        command.args(["volume", "export", "source", "--disk", "0", "--format", "raw"]);
        command.arg(out.join(name)).arg("--site").arg(&site.dir).env("HOME", out);
        let export = command.stderr(Stdio::piped()).spawn().unwrap();
        let partial = wait_for("the export to write", || {
            let image = partial_image(out)?;
            (image.metadata().ok()?.blocks() > 0).then_some(image)
        });
        let copying = wait_for("qemu-img", || child_of(export.id()));
        run("kill", ["-STOP", &copying.to_string()]);
        let written = partial.metadata().unwrap().blocks() * 512;
        assert!(written < 450 * MIB, "the export was over before it could be stopped: {written}");
        Self { export, copying }
    }

    fn go_on(&self) {
        run("kill", ["-CONT", &self.copying.to_string()]);
    }
}

fn partial_image(out: &Path) -> Option<PathBuf> {
    let names = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    let place = names.into_iter().find(|path| path.to_str().unwrap().contains(".lifeboat-export-"))?;
    Some(place.join("image"))
}

fn child_of(pid: u32) -> Option<u32> {
    // A child is listed under the thread that started it.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let children =
        threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    children.collect::<String>().split_whitespace().next()?.parse().ok()
}

fn volumes(site: &Site) -> usize {
    site.json(["volume", "list"]).as_array().unwrap().len()
}

#[test]
fn an_export_goes_on_when_its_vault_was_killed_or_stopped() {
    let (site, disk) = site_with_disk();
    let out = tempfile::tempdir_in(scratch()).unwrap();
    for signal in ["-KILL", "-TERM"] {
        let name = format!("image{signal}");
        let halfway = Halfway::start(&site, out.path(), &name);
        let vault = site.role("vault").unwrap();
        run("kill", [signal, &vault.to_string()]);
        wait_for("the vault to be gone", || (site.role("vault") != Some(vault)).then_some(()));
        halfway.go_on();
        let output = halfway.export.wait_with_output().unwrap();
        assert!(output.status.success(), "{signal}: {}", String::from_utf8_lossy(&output.stderr));
        let image = out.path().join(&name);
        run(
            "qemu-img",
            ["compare", "-f", "raw", "-F", "raw", image.to_str().unwrap(), disk.device.to_str().unwrap()],
        );
        assert_eq!(volumes(&site), 0);
        fs::remove_file(image).unwrap();
    }
}

#[test]
fn nothing_stays_of_an_export_that_is_killed() {
    let (site, _disk) = site_with_disk();
    let out = tempfile::tempdir_in(scratch()).unwrap();
    let mut halfway = Halfway::start(&site, out.path(), "image");
    assert_eq!(volumes(&site), 1);
    halfway.export.kill().unwrap();
    halfway.export.wait().unwrap();
    wait_for("qemu-img to go with its export", || {
        // It may wait to be reaped for as long as its new parent likes.
        let status = fs::read_to_string(format!("/proc/{}/status", halfway.copying)).unwrap_or_default();
        (status.is_empty() || status.contains("State:\tZ")).then_some(())
    });
    wait_for("the volume to close by itself", || (volumes(&site) == 0).then_some(()));
    let events = site.json(["event", "list"]);
    let closed = events.as_array().unwrap().iter().find(|event| event["code"] == "volume_closed");
    assert!(closed.unwrap()["message"].as_str().unwrap().contains("no client used it"), "{events}");
}
