//! Points of frozen file systems, and that they always thaw.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_capture::{
    CaptureOptions, CapturedPoint, PointError, QuiesceError, QuiesceHooks, QuiesceOptions, thaw_leftovers,
};
use lifeboat_model::PointKind;
use rig::{Images, LoopDisk, MIB, Rig, alone, run};

const FROZEN_MAX: Duration = Duration::from_secs(10);

/// A file system on a loop disk, mounted.
struct Mounted {
    rig: Rig,
    point: PathBuf,
    size: u64,
    record: PathBuf,
    _folder: tempfile::TempDir,
}

impl Mounted {
    fn new(kind: &str) -> Self {
        let size = if kind == "xfs" { 320 * MIB } else { 64 * MIB };
        let disk = LoopDisk::new(size);
        run(&format!("mkfs.{kind}"), &["-q".as_ref(), disk.path.as_os_str()]);
        let folder = tempfile::tempdir().unwrap();
        let point = folder.path().join("a mount");
        fs::create_dir(&point).unwrap();
        run("mount", &[disk.path.as_os_str(), point.as_os_str()]);
        let record = folder.path().join("frozen");
        let mut rig = Rig::new(vec![disk], CaptureOptions::default());
        // What mkfs wrote came before the tracking.
        rig.capture().tracker(lifeboat_model::DiskNumber(0)).unwrap().mark_all();
        Self { rig, point, size, record, _folder: folder }
    }

    fn options(&self) -> QuiesceOptions {
        QuiesceOptions { frozen_max: FROZEN_MAX, ..QuiesceOptions::new(self.record.clone()) }
    }

    fn take(
        &mut self,
        images: &mut Images,
        options: &QuiesceOptions,
        hooks: &mut dyn QuiesceHooks,
    ) -> Result<CapturedPoint, PointError> {
        let deadline = Instant::now() + Duration::from_secs(30);
        self.rig.capture().quiesced_point(images, options, hooks, deadline, &Timestamp::now)
    }

    /// Hangs while it is frozen.
    fn write_something(&self) {
        let mut file = File::create(self.point.join("something")).unwrap();
        file.write_all(b"written").unwrap();
        file.sync_all().unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.point).stderr(Stdio::null()).status();
        let _ = Command::new("umount").arg("--lazy").arg(&self.point).status();
    }
}

struct NoHooks;
impl QuiesceHooks for NoHooks {}

/// Calls a closure while frozen.
struct Inside<F>(F);
impl<F: FnMut() -> Result<(), String>> QuiesceHooks for Inside<F> {
    fn frozen(&mut self) -> Result<(), String> {
        (self.0)()
    }
}

/// Appends to one file, then to the other, without syncing; the point must have every append
/// that had returned, so the second is never longer, and shorter by one at most.
fn append_in_turn(point: &Path, stop: &AtomicBool) {
    let open = |name| OpenOptions::new().create(true).append(true).open(point.join(name)).unwrap();
    let (mut first, mut second) = (open("first"), open("second"));
    let line = [b'x'; 2000];
    while !stop.load(SeqCst) {
        first.write_all(&line).unwrap();
        second.write_all(&line).unwrap();
        if first.metadata().unwrap().len() > 8 << 20 {
            first.set_len(0).unwrap();
            second.set_len(0).unwrap();
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Mounts an image without replaying its journal and reads the lengths of both files.
fn lengths_in(image: &[u8], no_replay: &str) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("image");
    fs::write(&file, image).unwrap();
    let point = folder.path().join("mount");
    fs::create_dir(&point).unwrap();
    let options = format!("ro,loop,nouuid,{no_replay}");
    let options = if no_replay == "noload" { options.replace("nouuid,", "") } else { options };
    run("mount", &["-o".as_ref(), options.as_ref(), file.as_os_str(), point.as_os_str()]);
    let length = |name| {
        let content = fs::read(point.join(name)).unwrap_or_default();
        assert!(content.iter().all(|byte| *byte == b'x'), "{name} has content that nobody wrote");
        content.len() as u64
    };
    let lengths = (length("first"), length("second"));
    run("umount", &[point.as_os_str()]);
    lengths
}

fn points_are_clean(kind: &str, no_replay: &str) {
    let _alone = alone();
    let mut mounted = Mounted::new(kind);
    let mut images = Images::new(&[mounted.size]);
    let stop = AtomicBool::new(false);
    let point = mounted.point.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| append_in_turn(&point, &stop));
        let mut newest = 0;
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(100));
            let options = mounted.options();
            let result = mounted.take(&mut images, &options, &mut NoHooks);
            if result.is_err() {
                stop.store(true, SeqCst);
            }
            let captured = result.unwrap();
            assert_eq!(captured.kind, PointKind::Filesystem);
            assert!(captured.figures.frozen_us > 0 && captured.not_frozen.is_empty());
            assert!(!mounted.record.exists());
            let (first, second) = lengths_in(&images.disks[0], no_replay);
            assert!(first == second || first == second + 2000, "{first} and {second}");
            println!("{kind}: {:?}", captured.figures);
            newest = newest.max(first);
        }
        assert!(newest > 0);
        stop.store(true, SeqCst);
    });
}

#[test]
fn a_point_of_ext4_is_clean() {
    points_are_clean("ext4", "noload");
}

#[test]
fn a_point_of_xfs_is_clean() {
    points_are_clean("xfs", "norecovery");
}

#[test]
fn a_hook_that_hangs_is_cut_short_by_the_watchdog() {
    let _alone = alone();
    let mut mounted = Mounted::new("ext4");
    let options = QuiesceOptions { frozen_max: Duration::from_millis(200), ..mounted.options() };
    let written = Arc::new(AtomicBool::new(false));
    let (point, flag) = (mounted.point.clone(), Arc::clone(&written));
    let mut hung = Inside(move || {
        // This write ends only when the watchdog has thawed, since the hook waits for it.
        let (point, flag) = (point.clone(), Arc::clone(&flag));
        let write = std::thread::spawn(move || {
            fs::write(point.join("meanwhile"), b"x").unwrap();
            flag.store(true, SeqCst);
        });
        write.join().unwrap();
        Ok(())
    });
    let size = mounted.size;
    let error = mounted.take(&mut Images::new(&[size]), &options, &mut hung).unwrap_err();
    assert!(matches!(error, PointError::Quiesce(QuiesceError::Thawed { .. })), "{error}");
    assert!(error.to_string().contains("the watchdog"), "{error}");
    assert!(written.load(SeqCst));
    mounted.write_something();
    let mut images = Images::new(&[size]);
    mounted.rig.capture().resend_unacknowledged();
    mounted.take(&mut images, &mounted.options(), &mut NoHooks).unwrap();
}

#[test]
fn a_hook_that_refuses_or_panics_leaves_nothing_frozen() {
    let _alone = alone();
    let mut mounted = Mounted::new("ext4");
    let options = mounted.options();
    let size = mounted.size;
    let mut refusing = Inside(|| Err("the other server is late".to_owned()));
    let error = mounted.take(&mut Images::new(&[size]), &options, &mut refusing).unwrap_err();
    assert_eq!(error.to_string(), "the frozen step said: the other server is late");
    mounted.write_something();

    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut panicking = Inside(|| panic!("on purpose"));
        mounted.take(&mut Images::new(&[size]), &options, &mut panicking)
    }));
    assert!(panicked.is_err());
    mounted.write_something();
    assert!(thaw_leftovers(&mounted.record).unwrap().is_empty());
    mounted.take(&mut Images::new(&[size]), &options, &mut NoHooks).unwrap();
}

#[test]
fn hooks_are_called_in_their_order() {
    struct Order(Vec<&'static str>);
    impl QuiesceHooks for Order {
        fn prepare(&mut self) -> Result<(), String> {
            self.0.push("prepare");
            Ok(())
        }
        fn frozen(&mut self) -> Result<(), String> {
            self.0.push("frozen");
            Ok(())
        }
        fn release(&mut self) {
            self.0.push("release");
        }
    }
    let _alone = alone();
    let mut mounted = Mounted::new("ext4");
    let (options, size) = (mounted.options(), mounted.size);
    let mut order = Order(Vec::new());
    mounted.take(&mut Images::new(&[size]), &options, &mut order).unwrap();
    assert_eq!(order.0, ["prepare", "frozen", "release"]);
}

#[test]
fn what_cannot_be_frozen_is_named() {
    let _alone = alone();
    let mut mounted = Mounted::new("ext4");
    let (options, size) = (mounted.options(), mounted.size);
    run("fsfreeze", &["--freeze".as_ref(), mounted.point.as_os_str()]);
    // Someone else holds it, so syncing and reading work and freezing does not.
    let error = mounted.take(&mut Images::new(&[size]), &options, &mut NoHooks).unwrap_err();
    run("fsfreeze", &["--unfreeze".as_ref(), mounted.point.as_os_str()]);
    let text = error.to_string();
    assert!(text.contains("a mount (ext4 on /dev/loop") && text.contains("busy"), "{text}");

    run("umount", &[mounted.point.as_os_str()]);
    let error = mounted.take(&mut Images::new(&[size]), &options, &mut NoHooks).unwrap_err();
    assert!(matches!(error, PointError::Quiesce(QuiesceError::NoFileSystems)), "{error}");
}

/// No test of its own: the process that is killed, which has a device in its environment.
#[test]
fn the_process_that_is_killed() {
    let Ok(device) = std::env::var("LIFEBOAT_TEST_DEVICE") else { return };
    let record = PathBuf::from(std::env::var("LIFEBOAT_TEST_RECORD").unwrap());
    let pins = PathBuf::from(std::env::var("LIFEBOAT_TEST_PINS").unwrap());
    let set = lifeboat_tracker::TrackerSet::open(&pins).unwrap();
    let mut capture = lifeboat_capture::Capture::new(set, CaptureOptions::default()).unwrap();
    let disk = lifeboat_tracker::DiskDevice::inspect(device.as_ref()).unwrap();
    let (tracker, _) = capture.trackers().attach(&disk.key, &disk.identity).unwrap();
    capture.add_disk(lifeboat_model::DiskNumber(0), device.as_ref(), tracker).unwrap();
    let options = QuiesceOptions { frozen_max: Duration::from_secs(600), ..QuiesceOptions::new(record) };
    let mut for_ever = Inside(|| {
        println!("\nfrozen");
        loop {
            std::thread::park();
        }
    });
    let deadline = Instant::now() + Duration::from_secs(600);
    let mut images = Images::new(&[64 * MIB]);
    let _ = capture.quiesced_point(&mut images, &options, &mut for_ever, deadline, &Timestamp::now);
}

#[test]
fn what_a_killed_process_left_frozen_is_thawed_at_the_next_start() {
    let _alone = alone();
    let mounted = Mounted::new("ext4");
    let pins = PathBuf::from(format!("/sys/fs/bpf/lifeboat-killed-{}", std::process::id()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--nocapture"])
        .env("LIFEBOAT_TEST_DEVICE", &mounted.rig.disks[0].path)
        .env("LIFEBOAT_TEST_RECORD", &mounted.record)
        .env("LIFEBOAT_TEST_PINS", &pins)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while !output.ends_with("\nfrozen\n") {
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "the other process failed: {output}");
        output.push(char::from(byte[0]));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let thawed = thaw_leftovers(&mounted.record).unwrap();
    assert_eq!(thawed, [mounted.point.display().to_string()]);
    mounted.write_something();
    assert!(!mounted.record.exists());
    assert!(thaw_leftovers(&mounted.record).unwrap().is_empty());

    let set = lifeboat_tracker::TrackerSet::open(&pins).unwrap();
    for instance in set.list().unwrap() {
        set.detach(&instance.key).unwrap();
    }
    drop(set);
    let _ = fs::remove_file(pins.join("control"));
    fs::remove_dir(pins).unwrap();
}
