//! A machine's serial console is used over the vault: on a terminal, and by programs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use lifeboat_proof::{LoopDisk, Programs, Site, echoing_boot_sector, wait_for};

const CTRL_RIGHT_BRACKET: &[u8] = b"\x1d";

#[test]
fn a_console_is_typed_on_at_a_terminal_and_by_programs() {
    let disk = LoopDisk::new(16 << 20);
    let device = File::options().write(true).open(&disk.device).unwrap();
    device.write_all_at(&echoing_boot_sector("echo login: "), 0).unwrap();
    device.sync_all().unwrap();
    let site = Site::start(&[&disk], "2s");
    site.await_first_point();
    site.json(["target", "set", "source", "--memory", "64", "--cpus", "1", "--up-within", "5m"]);
    assert_eq!(site.json(["failover", "test", "source", "--keep"])["state"], "done");
    let console = || site.json(["machine", "console", "source"])["text"].as_str().unwrap().to_owned();
    assert_eq!(console(), "echo login: ");

    // A program types, and gets what the machine says to that alone.
    let answer = typed(&site, b"from a program\n");
    assert!(answer.status.success(), "{answer:?}");
    assert_eq!(String::from_utf8(answer.stdout).unwrap(), "from a program\n");
    assert_eq!(shown(&site), "echo login: from a program\n");

    // Somebody sits before a terminal. Ctrl-C is the machine's, as everything is but the key that leaves.
    let mut terminal = Terminal::open(&site);
    terminal.wait_for("echo login: from a program");
    terminal.press(b"keys\x03 pressed");
    terminal.wait_for("keys\x03 pressed");
    terminal.press(CTRL_RIGHT_BRACKET);
    let status = wait_for("the end of the command", || terminal.process.try_wait().unwrap());
    assert!(status.success(), "{status}: {}", terminal.text());
    assert_eq!(console(), "echo login: from a program\nkeys\x03 pressed");

    site.json(["failover", "cleanup", "source"]);
    let gone = typed(&site, b"to nobody");
    assert_eq!(gone.status.code(), Some(2), "{gone:?}");
}

fn command(site: &Site) -> Vec<String> {
    let words = ["--site", site.dir.to_str().unwrap(), "machine", "console", "source"];
    let program = Programs::find().lifeboat.display().to_string();
    [program].into_iter().chain(words.map(str::to_owned)).collect()
}

fn begun(site: &Site, options: &[&str]) -> Child {
    let words = command(site);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(options).env("HOME", site.dir.parent().unwrap());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What the command says to this on its standard input.
fn typed(site: &Site, input: &[u8]) -> Output {
    let mut process = begun(site, &["--input"]);
    process.stdin.take().unwrap().write_all(input).unwrap();
    process.wait_with_output().unwrap()
}

/// What the command shows with a standard input that nobody closes, as a script may have it.
fn shown(site: &Site) -> String {
    let mut process = begun(site, &[]);
    let open = process.stdin.take().unwrap();
    let ended = wait_for("the command to end by itself", || process.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
    drop(open);
    String::from_utf8(process.wait_with_output().unwrap().stdout).unwrap()
}

/// The command in a terminal of its own, which `script` makes.
struct Terminal {
    process: Child,
    text: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn open(site: &Site) -> Self {
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--echo", "never", "--command", &command(site).join(" ")]);
        script.arg("/dev/null").env("HOME", site.dir.parent().unwrap());
        let mut process = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (text, mut out) = (Arc::<Mutex<Vec<u8>>>::default(), process.stdout.take().unwrap());
        let kept = Arc::clone(&text);
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = out.read(&mut part) {
                kept.lock().unwrap().extend_from_slice(&part[..read]);
            }
        });
        Self { process, text }
    }

    fn press(&mut self, keys: &[u8]) {
        let keyboard = self.process.stdin.as_mut().unwrap();
        keyboard.write_all(keys).unwrap();
        keyboard.flush().unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    fn wait_for(&self, text: &str) {
        wait_for(&format!("{text:?} on the terminal"), || self.text().contains(text).then_some(()));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
