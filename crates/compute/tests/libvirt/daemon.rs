//! A libvirt of the tests' own.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Its daemons see directories of their own where libvirt keeps things, and nothing of them outlives the script,
/// which ends when its input does: then its process name space ends with all in it, machines too. It is the first
/// process there, to which each QEMU falls; bash takes notice of their ends, which libvirt waits for.
const SCRIPT: &str = r#"
set -eu
for directory in etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt run/libvirt; do
    mkdir -p "/$directory" "$PLACE/$directory"
    mount --bind "$PLACE/$directory" "/$directory"
done
# libvirtd wants the user that its package would make, even if its settings name another.
for file in passwd group; do
    cp "/etc/$file" "$PLACE/$file"
    mount --bind "$PLACE/$file" "/etc/$file"
done
grep -q '^libvirt-qemu:' /etc/passwd || echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/bin/false' >>/etc/passwd
grep -q '^libvirt-qemu:' /etc/group || echo 'libvirt-qemu:x:64055:' >>/etc/group
virtlogd --pid-file "$PLACE/virtlogd.pid" >"$PLACE/virtlogd.log" 2>&1 &
begin() {
    rm -f /run/libvirtd.pid "$PLACE/libvirtd.pid"
    libvirtd --pid-file "$PLACE/libvirtd.pid" $OPTIONS >>"$PLACE/libvirtd.log" 2>&1 &
    daemon=$!
}
begin
while read -r word; do
    kill -KILL "$daemon"
    wait "$daemon" || true
    begin
done
rm -rf "$PLACE"
"#;

const LIBVIRTD: &str = r#"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
"#;

const QEMU: &str = r#"
user = "root"
group = "root"
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
"#;

/// Console texts are begun anew after so many bytes.
pub const CONSOLE_BYTES: u64 = 64 << 10;

/// How long libvirt may take to be there: it asks each QEMU what it can do.
const PATIENCE: Duration = Duration::from_secs(180);

pub struct Daemon {
    pub place: TempDir,
    script: Child,
    input: Mutex<ChildStdin>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::with("", "", "")
    }

    /// One with more in its settings and on its command line.
    pub fn with(libvirtd: &str, qemu: &str, options: &str) -> Self {
        let place = tempfile::Builder::new().prefix("lv").tempdir().unwrap();
        let settings = place.path().join("etc/libvirt");
        fs::create_dir_all(&settings).unwrap();
        fs::write(settings.join("libvirtd.conf"), format!("{LIBVIRTD}{libvirtd}")).unwrap();
        fs::write(settings.join("qemu.conf"), format!("{QEMU}{qemu}")).unwrap();
        fs::write(settings.join("virtlogd.conf"), format!("max_size = {CONSOLE_BYTES}\n")).unwrap();
        let mut script = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", SCRIPT])
            .env("PLACE", place.path())
            .env("OPTIONS", options)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let input = Mutex::new(script.stdin.take().unwrap());
        let daemon = Self { place, script, input };
        daemon.until_there();
        daemon
    }

    fn until_there(&self) {
        let began = Instant::now();
        while !self.virsh(&["version"]).0 {
            let log = fs::read_to_string(self.place.path().join("libvirtd.log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "libvirt does not start: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills libvirtd and starts it again; machines run on.
    pub fn restart(&self) {
        let running = self.libvirtd();
        self.input.lock().unwrap().write_all(b"restart\n").unwrap();
        let began = Instant::now();
        while self.libvirtd() == running {
            assert!(began.elapsed() < PATIENCE, "libvirtd is not started again");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.until_there();
    }

    fn libvirtd(&self) -> Option<String> {
        fs::read_to_string(self.place.path().join("libvirtd.pid")).ok().filter(|text| !text.is_empty())
    }

    pub fn uri(&self) -> String {
        let socket = self.place.path().join("run/libvirt/libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// Whether it succeeded, and what it said.
    pub fn virsh(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new("virsh");
        command.args(["--quiet", "--connect", &self.uri()]).args(arguments).env("LC_ALL", "C");
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// A program on libvirt's host: it sees the daemon's directories. It ends with the thread that started it.
    pub fn on_host(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.script.id().to_string();
        command.args(["--target", &target, "--mount", "setpriv", "--pdeathsig", "KILL", program]);
        command
    }

    /// The directory in which libvirt's host keeps what belongs to the machines of a vault.
    pub fn kept_for(&self, vault: &str) -> PathBuf {
        self.place.path().join(format!("var/lib/libvirt/lifeboat-{vault}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Its first process goes with it, and that name space's processes with that.
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

/// The daemon that most tests share. It ends with the tests, since its input does.
pub fn shared() -> &'static Daemon {
    static SHARED: OnceLock<Daemon> = OnceLock::new();
    SHARED.get_or_init(Daemon::start)
}

/// The processes with this in their arguments.
pub fn processes_with(text: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_qemu = arguments.starts_with(b"/usr/bin/qemu-system");
        if is_qemu && String::from_utf8_lossy(&arguments).contains(text) {
            found.push(pid);
        }
    }
    found
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

pub fn entries(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}
