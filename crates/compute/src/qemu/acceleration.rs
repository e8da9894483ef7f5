//! What the QEMU on this machine can do, found out by trying.
//!
//! That `/dev/kvm` exists says little: a host may offer it and be too slow for any kernel. So a trial guest
//! of one sector does under KVM what kernels do first (`trial_guest.s`), within a time that leaves a working
//! KVM plenty of room. The answer holds until this machine boots again or gets another QEMU, and is kept.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::command_line::SANDBOX;
use super::settings::{AccelerationChoice, QemuSettings};
use crate::directory::{last_lines, private_file};
use crate::error::ComputeError;
use crate::provider::Acceleration;

/// The boot sector of the trial guest. It says how far it got with one letter each: R, L, M and, at its end, C.
pub(crate) const TRIAL_GUEST: &[u8] = include_bytes!("trial_guest.bin");
/// Firmware does not start from a disk that is smaller than this.
pub(crate) const TRIAL_DISK_BYTES: u64 = 1 << 20;
pub(crate) const TRIAL_LIMIT: Duration = Duration::from_secs(10);
const QUESTION_LIMIT: Duration = Duration::from_secs(60);
const KEPT: &str = "qemu.json";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What QEMU can do here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    boot: String,
    choice: AccelerationChoice,
    program: PathBuf,
    pub version: String,
    pub acceleration: Acceleration,
    /// Whether it can confine itself.
    pub sandbox: bool,
}

impl Found {
    /// Arguments that choose who executes instructions.
    pub(crate) fn arguments(&self) -> &'static [&'static str] {
        match self.acceleration {
            Acceleration::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Acceleration::Tcg { .. } => &["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}

/// Looks up what was found since this machine booted, or finds it out.
pub(crate) async fn find_out(settings: &QemuSettings) -> Result<Found, ComputeError> {
    let version = version(settings).await?;
    let boot = fs::read_to_string(BOOT_ID).map_err(ComputeError::io("read", BOOT_ID))?.trim().to_owned();
    let choice = settings.acceleration;
    let program = settings.program.clone();
    let holds = |known: &Found| {
        (&known.boot, known.choice, &known.version, &known.program) == (&boot, choice, &version, &program)
    };
    if let Some(known) = places(settings).iter().find_map(|place| known(place).filter(holds)) {
        return Ok(known);
    }
    let sandbox = sandbox_works(settings).await?;
    let acceleration = match choice {
        AccelerationChoice::Kvm => Acceleration::Kvm,
        AccelerationChoice::Tcg => {
            Acceleration::Tcg { why_not_kvm: "the settings say that KVM is not used".into() }
        }
        AccelerationChoice::Try => try_kvm(settings).await?,
    };
    tracing::info!(%version, ?acceleration, sandbox, "found out what QEMU can do");
    let found = Found { boot, choice, program, version, acceleration, sandbox };
    keep(settings, &found)?;
    Ok(found)
}

/// Where findings are kept, the better place first.
fn places(settings: &QemuSettings) -> [PathBuf; 2] {
    let name = match settings.acceleration {
        AccelerationChoice::Try => "try.json",
        AccelerationChoice::Kvm => "kvm.json",
        AccelerationChoice::Tcg => "tcg.json",
    };
    [settings.findings.join(name), settings.state_directory.join(KEPT)]
}

fn known(place: &Path) -> Option<Found> {
    // What others may have written is not believed.
    let metadata = fs::metadata(place.parent()?).ok()?;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    let text = fs::read(place).ok().filter(|_| is_own)?;
    serde_json::from_slice(&text).ok()
}

fn keep(settings: &QemuSettings, found: &Found) -> Result<(), ComputeError> {
    let text = serde_json::to_vec_pretty(found).map_err(io::Error::other);
    let text = text.map_err(ComputeError::io("write", KEPT))?;
    let [shared, own] = places(settings);
    // Whole or not at all: others may be reading it.
    let share = || {
        let made = fs::DirBuilder::new().mode(0o700).create(&settings.findings);
        made.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })?;
        let partial = shared.with_extension(format!("{}.partial", std::process::id()));
        fs::write(&partial, &text)?;
        fs::rename(&partial, &shared)
    };
    if let Err(error) = share() {
        tracing::debug!(path = %shared.display(), %error, "what QEMU can do is not kept for others");
        fs::write(&own, &text).map_err(ComputeError::io("write", own))?;
    }
    Ok(())
}

/// A command that runs QEMU and ends with this process.
fn qemu(settings: &QemuSettings) -> Command {
    let mut command = Command::new(&settings.program);
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn not_run(settings: &QemuSettings, error: &io::Error) -> ComputeError {
    let program = settings.program.display().to_string();
    match error.kind() {
        io::ErrorKind::NotFound => ComputeError::ProgramMissing { program, package: "qemu-system-x86" },
        _ => ComputeError::Hypervisor { program, why: error.to_string() },
    }
}

async fn version(settings: &QemuSettings) -> Result<String, ComputeError> {
    let broken =
        |why: String| ComputeError::Hypervisor { program: settings.program.display().to_string(), why };
    let asked = qemu(settings).arg("--version").output();
    let output = tokio::time::timeout(QUESTION_LIMIT, asked)
        .await
        .map_err(|_| broken(format!("it did not tell its version in {} s", QUESTION_LIMIT.as_secs())))?
        .map_err(|error| not_run(settings, &error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next().and_then(|line| line.strip_prefix("QEMU emulator version ")) {
        Some(version) if output.status.success() => Ok(format!("QEMU {version}")),
        _ => Err(broken(format!(
            "asked for its version it said {:?}",
            last_lines(&format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
        ))),
    }
}

/// Whether QEMU runs when it confines itself; some are built without.
async fn sandbox_works(settings: &QemuSettings) -> Result<bool, ComputeError> {
    let broken =
        |why: String| ComputeError::Hypervisor { program: settings.program.display().to_string(), why };
    let run = async {
        let mut child = qemu(settings)
            .args(["-nodefaults", "-no-user-config", "-machine", "none", "-display", "none", "-S"])
            .args(["-sandbox", SANDBOX, "-qmp", "stdio"])
            .stdin(Stdio::piped())
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // A QEMU that ended already does not read this, and its status says so.
            let _ = input.write_all(b"{'execute':'qmp_capabilities'}{'execute':'quit'}").await;
            child.stdin = Some(input);
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(QUESTION_LIMIT, run).await {
        Err(_) => Err(broken(format!("it did not quit within {} s", QUESTION_LIMIT.as_secs()))),
        Ok(Ok(output)) => Ok(output.status.success()),
        Ok(Err(error)) => Err(not_run(settings, &error)),
    }
}

async fn try_kvm(settings: &QemuSettings) -> Result<Acceleration, ComputeError> {
    let no = |why_not_kvm: String| Ok(Acceleration::Tcg { why_not_kvm });
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        return no(match error.kind() {
            io::ErrorKind::NotFound => "this machine has no /dev/kvm".into(),
            _ => format!("/dev/kvm cannot be opened: {error}"),
        });
    }
    let place = settings.state_directory.join("kvm-trial");
    let failed = |error| ComputeError::io("prepare the trial of KVM in", &place)(error);
    match fs::remove_dir_all(&place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => fs::create_dir(&place).map_err(failed)?,
    }
    let outcome = trial(settings, &place).await;
    fs::remove_dir_all(&place).map_err(failed)?;
    match outcome.map_err(failed)? {
        Ok(()) => Ok(Acceleration::Kvm),
        Err(why) => no(why),
    }
}

/// Runs the trial guest. The inner error is a sentence that says why KVM is not used.
async fn trial(settings: &QemuSettings, place: &Path) -> io::Result<Result<(), String>> {
    let disk = private_file(&place.join("disk"))?;
    io::Write::write_all(&mut &disk, TRIAL_GUEST)?;
    disk.set_len(TRIAL_DISK_BYTES)?;
    let console = place.join("console");
    private_file(&console)?;
    let mut guest = qemu(settings)
        .current_dir(place)
        .args(["-nodefaults", "-no-user-config", "-machine", "q35", "-accel", "kvm", "-cpu", "host"])
        .args(["-m", "128", "-display", "none", "-serial", "file:console"])
        .args(["-blockdev", "driver=file,node-name=disk,filename=disk,read-only=on"])
        .args(["-device", "virtio-blk-pci,drive=disk"])
        .spawn()?;
    let done = async {
        loop {
            if fs::read(&console)?.contains(&b'C') {
                return io::Result::Ok(true);
            }
            if guest.try_wait()?.is_some() {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = tokio::time::timeout(TRIAL_LIMIT, done).await;
    let got_to = got_to(&fs::read(&console)?);
    guest.start_kill().or_else(|error| if guest.id().is_none() { Ok(()) } else { Err(error) })?;
    let output = guest.wait_with_output().await?;
    Ok(match outcome {
        Ok(Ok(true)) => Ok(()),
        Ok(Err(error)) => return Err(error),
        Ok(Ok(false)) => {
            Err(format!("QEMU with KVM ended: {}", last_lines(&String::from_utf8_lossy(&output.stderr))))
        }
        Err(_) => Err(format!(
            "this machine has /dev/kvm, but a trial guest under it {got_to} within {} s",
            TRIAL_LIMIT.as_secs()
        )),
    })
}

/// How far the trial guest came that said this.
pub(crate) fn got_to(said: &[u8]) -> &'static str {
    match said.last() {
        None => "did not begin",
        Some(b'R') => "did not get from real mode to long mode",
        Some(b'L') => "did not copy 16 MiB",
        Some(b'M') => "did not count to 100 million",
        Some(_) => "got lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_guest_is_what_its_source_says() {
        let place = tempfile::tempdir().unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut command = std::process::Command::new(program);
            assert!(command.current_dir(place.path()).args(arguments).status().unwrap().success());
        };
        fs::write(place.path().join("t.s"), include_str!("trial_guest.s")).unwrap();
        run("as", &["--64", "t.s", "-o", "t.o"]);
        run("ld", &["-Ttext=0x7c00", "-e", "0", "--oformat=binary", "-o", "t.bin", "t.o"]);
        assert_eq!(fs::read(place.path().join("t.bin")).unwrap(), TRIAL_GUEST);
    }
}
