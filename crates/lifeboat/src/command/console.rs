//! `lifeboat machine console`: the serial console of a machine, shown and typed on.

use std::cell::Cell;
use std::io::{self, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lifeboat_client::{Vault, VaultError};
use lifeboat_transport::ClientError;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use crate::arguments::{Output, SiteArguments};
use crate::failure::{Answer, Failure};
use crate::table::print_json;

/// Time between two looks at a console that is followed.
const FOLLOW: Duration = Duration::from_millis(500);
/// The same while somebody types.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A machine that wrote nothing for so long has answered what was typed.
const SILENCE: Duration = Duration::from_secs(1);
/// A machine that is never silent is listened to for so long after all was typed.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Bytes that are typed at once.
const INPUT_BYTES: usize = 4 << 10;
/// So much of what was written before is shown to somebody who sits down before a console.
const SHOWN_BEFORE_BYTES: u64 = 4 << 10;
/// Ctrl-].
const LEAVE: u8 = 0x1d;
/// A place after everything that was written.
const END: u64 = u64::MAX;

/// What is to be done with the console, if not only shown.
pub struct Use {
    pub follow: bool,
    pub input: bool,
}

pub async fn run(
    arguments: &SiteArguments,
    vault: &Vault,
    server: &str,
    how: Use,
) -> Result<Answer, Failure> {
    if how.input {
        type_input(vault, server).await?;
    } else if how.follow {
        show(vault, server, true).await?;
    } else if arguments.output == Output::Json {
        print_json(&vault.console(server, 0).await?)?;
    } else if io::stdin().is_terminal() && io::stdout().is_terminal() {
        sit_before(vault, server).await?;
    } else {
        // Standard input that nobody meant, as a script's, is left alone: it may never end.
        show(vault, server, false).await?;
    }
    Ok(Answer::Done)
}

/// Prints what was written so far, and goes on if that is wanted.
async fn show(vault: &Vault, server: &str, follow: bool) -> Result<(), Failure> {
    let mut from = 0;
    loop {
        let console = vault.console(server, from).await?;
        // An answer has a part of a long text only.
        let is_all = console.next == from;
        if !print(&console.text) || (is_all && !follow) {
            return Ok(());
        }
        if is_all {
            tokio::time::sleep(FOLLOW).await;
        }
        from = console.next;
    }
}

/// Types what standard input has, and prints what the machine writes meanwhile and in answer.
async fn type_input(vault: &Vault, server: &str) -> Result<(), Failure> {
    let mut from = vault.console(server, END).await?.next;
    let typed = Cell::new(None);
    let typing = async {
        let mut input = input();
        while let Some(part) = input.recv().await {
            vault.write_console(server, part).await?;
        }
        typed.set(Some(Instant::now()));
        Ok::<_, Failure>(())
    };
    let reading = async {
        let mut heard = Instant::now();
        loop {
            let console = vault.console(server, from).await?;
            if !console.text.is_empty() {
                heard = Instant::now();
            }
            let is_answered =
                |typed: Instant| typed.max(heard).elapsed() >= SILENCE || typed.elapsed() >= ANSWER_LIMIT;
            if !print(&console.text) || typed.get().is_some_and(is_answered) {
                return Ok(());
            }
            if console.next == from {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            from = console.next;
        }
    };
    tokio::try_join!(typing, reading).map(drop)
}

/// Connects this terminal with the console.
async fn sit_before(vault: &Vault, server: &str) -> Result<(), Failure> {
    let end = vault.console(server, END).await?.next;
    eprintln!("This is the console of {server}; leave it with Ctrl-].");
    let unusable = |error| Failure::new(format!("this terminal cannot be used: {error}"));
    let terminal = RawTerminal::enter().map_err(unusable)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(unusable)?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(unusable)?;
    let typed = Notify::new();
    let ended = tokio::select! {
        ended = watch(vault, server, end.saturating_sub(SHOWN_BEFORE_BYTES), &typed) => ended,
        ended = type_keys(vault, server, &typed) => ended,
        _ = terminated.recv() => Ok(()),
        _ = hung_up.recv() => Ok(()),
    };
    drop(terminal);
    eprintln!();
    ended
}

/// Prints what the machine writes, soon after keys were typed.
async fn watch(vault: &Vault, server: &str, from: u64, typed: &Notify) -> Result<(), Failure> {
    let mut from = from;
    loop {
        let console = vault.console(server, from).await?;
        if !print(&console.text) {
            return Ok(());
        }
        if console.next == from {
            let _ = tokio::time::timeout(LOOK_AGAIN, typed.notified()).await;
        }
        from = console.next;
    }
}

/// Types what comes from the terminal, until the key that leaves.
async fn type_keys(vault: &Vault, server: &str, typed: &Notify) -> Result<(), Failure> {
    let mut input = input();
    while let Some(part) = input.recv().await {
        let leaves = part.iter().position(|byte| *byte == LEAVE);
        let keys = part.slice(..leaves.unwrap_or(part.len()));
        if !keys.is_empty() {
            match vault.write_console(server, keys).await {
                // As while the guest boots. Whoever types sees that nothing comes of it.
                Err(VaultError::Client(ClientError::Api { code, .. })) if code == "console_not_read" => {
                    eprint!("\r\n[the machine does not read its console]\r\n");
                }
                written => written?,
            }
            typed.notify_one();
        }
        if leaves.is_some() {
            break;
        }
    }
    Ok(())
}

/// What standard input has, as it comes.
fn input() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(1);
    // A thread of its own: a read that nobody waits for any more does not keep the program from ending.
    std::thread::spawn(move || {
        let mut part = vec![0; INPUT_BYTES];
        while let Ok(read @ 1..) = io::stdin().lock().read(&mut part) {
            if sender.blocking_send(Bytes::copy_from_slice(&part[..read])).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Whether somebody took it: a reader that has gone away is no error.
fn print(text: &str) -> bool {
    let mut out = io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// The terminal gives each key as it is pressed. It is as before when this goes.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
