//! A virtual machine in QEMU that starts from one disk.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::qmp::Qmp;
use crate::{DiskLayout, ServerDisk, Ssh, free_port, wait_for, wait_within};

/// A boot takes a minute when nothing else runs: the processor is emulated.
const BOOT_MAX: Duration = Duration::from_secs(600);
const SHUTDOWN_MAX: Duration = Duration::from_secs(180);

/// The address by which the machine reaches the loopback address of this one.
pub const HOST_ADDRESS: &str = "10.0.2.2";

/// The machine's only disk, as its Linux calls it.
pub const MACHINE_DISK: &str = "/dev/vda";

const OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Whom the machine reaches. Either way we reach its SSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This machine, at [`HOST_ADDRESS`], and what this machine reaches.
    Host,
    /// Nobody: no packet leaves that is not an answer to us.
    Nobody,
}

/// A running machine. Its power is cut when this is dropped, or the thread that started it ends.
pub struct VirtualMachine {
    pub ssh: Ssh,
    qemu: Mutex<Child>,
    dir: TempDir,
}

impl VirtualMachine {
    /// Starts a server from its own disk.
    pub fn start(disk: &ServerDisk, reach: Reach) -> Self {
        Self::start_from(disk.image.to_str().unwrap(), disk, reach)
    }

    /// Starts the copy of a server from `source`, a raw disk that is a file or an NBD URI. It knows
    /// the same keys as the server.
    pub fn start_from(source: &str, server: &ServerDisk, reach: Reach) -> Self {
        let dir = tempfile::Builder::new().prefix("lifeboat-machine-").tempdir_in("/run").unwrap();
        let port = free_port();
        let net = if reach == Reach::Nobody { "restrict=on," } else { "" };
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        // Ctrl-C in a terminal is not for the machine.
        qemu.process_group(0);
        qemu.args(["-name", "source", "-nodefaults", "-vga", "std", "-display", "none"]);
        // KVM is not tried: where it is nested it may be offered and hang.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]);
        qemu.args(["-drive", &format!("if=none,id=disk,format=raw,file={}", escaped(source))]);
        qemu.args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"]);
        qemu.args(["-netdev", &format!("user,id=net,{net}hostfwd=tcp:127.0.0.1:{port}-:22")]);
        qemu.args(["-device", "virtio-net-pci,netdev=net"]);
        qemu.arg("-serial").arg(format!("file:{}", dir.path().join(CONSOLE).display()));
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", dir.path().join(QMP).display()));
        if server.layout == DiskLayout::Uefi {
            let variables = dir.path().join("variables.fd");
            fs::copy(OVMF_VARIABLES, &variables).unwrap();
            qemu.args(["-drive", &format!("if=pflash,format=raw,readonly=on,file={OVMF}")]);
            qemu.arg("-drive").arg(format!("if=pflash,format=raw,file={}", variables.display()));
        }
        let errors = File::create(dir.path().join(ERRORS)).unwrap();
        let qemu = qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap();
        Self { ssh: Ssh::at_port(port, server), qemu: Mutex::new(qemu), dir }
    }

    /// Waits until the machine asks for a login on its console and lets us in over SSH.
    pub fn await_login(&self) {
        wait_within(BOOT_MAX, "a login on the console", || {
            self.assert_runs();
            self.console().contains("source login:").then_some(())
        });
        wait_within(BOOT_MAX, "SSH to let us in", || {
            self.assert_runs();
            self.ssh.attempt("true").status.success().then_some(())
        });
    }

    /// What the machine has written on its serial console so far.
    pub fn console(&self) -> String {
        read(&self.dir.path().join(CONSOLE))
    }

    /// Shuts the machine down as its power button does, and waits until it is off.
    pub fn shut_down(&self) {
        let mut qmp = wait_for("QEMU to listen", || Qmp::connect(&self.dir.path().join(QMP)));
        qmp.order("system_powerdown", &json!({}));
        wait_within(SHUTDOWN_MAX, "the machine to shut down", || self.qemu().try_wait().unwrap());
    }

    /// Cuts the machine's power: what it had not written to its disk is lost.
    pub fn cut_power(&self) {
        let mut qemu = self.qemu();
        let _ = qemu.kill();
        let _ = qemu.wait();
    }

    fn qemu(&self) -> MutexGuard<'_, Child> {
        self.qemu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assert_runs(&self) {
        let ended = self.qemu().try_wait().unwrap();
        assert!(ended.is_none(), "QEMU ended with {ended:?}: {}", read(&self.dir.path().join(ERRORS)));
    }
}

const CONSOLE: &str = "console";
const QMP: &str = "qmp";
const ERRORS: &str = "errors";

impl Drop for VirtualMachine {
    fn drop(&mut self) {
        self.cut_power();
        if std::thread::panicking() {
            let console = self.console();
            let lines: Vec<_> = console.lines().collect();
            eprintln!("--- the machine's console\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
        }
    }
}

/// A comma ends a value in QEMU's options, two are one.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
