//! A load that numbers its commits, so that a copy shows which of them it has.

use std::io::{BufRead, BufReader, Write};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;

use crate::Ssh;

const PSQL: &str =
    "psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --username=postgres";

/// Commits 1, 2, 3 … to a table of a machine's PostgreSQL, one after the other. A machine that has
/// some goes on after its last.
pub struct NumberedCommits {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    writer: Option<JoinHandle<()>>,
}

/// A commit that PostgreSQL has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    pub number: u64,
    /// Not before the acknowledgement, by the clock of the machine that committed, which is also
    /// that of its recovery points.
    pub at: Timestamp,
}

impl NumberedCommits {
    /// Makes the table if it is missing, and begins. `pause` is from one commit to the next.
    pub fn start(ssh: &Ssh, pause: Duration) -> Self {
        ssh.run(&format!("{PSQL} --command 'create table if not exists numbered (n bigint primary key)'"));
        let first = Self::count(ssh) + 1;
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::default();
        let psql = ssh.start(PSQL);
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let writer = thread::spawn(move || commit(psql, first, pause, &stopped, &noted));
        Self { stop, acknowledged, writer: Some(writer) }
    }

    /// The commits acknowledged so far.
    pub fn acknowledged(&self) -> Vec<Acknowledged> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the load, which has also ended when its machine has, and answers what was acknowledged.
    pub fn stop(mut self) -> Vec<Acknowledged> {
        self.end();
        self.acknowledged()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }

    /// How many commits a machine's PostgreSQL has, which is also the number of the last.
    ///
    /// # Panics
    /// When one is missing before the last.
    pub fn count(ssh: &Ssh) -> u64 {
        let answer =
            ssh.run(&format!("{PSQL} --command 'select count(*), coalesce(max(n), 0) from numbered'"));
        let (count, newest) = answer.split_once('|').unwrap();
        assert_eq!(count, newest, "commits are missing in the middle");
        count.parse().unwrap()
    }
}

impl Drop for NumberedCommits {
    fn drop(&mut self) {
        self.end();
    }
}

/// Commits until it is told to stop or the machine is no longer there.
fn commit(mut psql: Child, first: u64, pause: Duration, stop: &AtomicBool, noted: &Mutex<Vec<Acknowledged>>) {
    let (Some(mut statements), Some(answers)) = (psql.stdin.take(), psql.stdout.take()) else { return };
    let mut answers = BufReader::new(answers).lines();
    for number in first.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // The clock is asked after the commit was acknowledged, so no commit looks older than it is.
        let sent = writeln!(
            statements,
            "insert into numbered values ({number}); \
             select {number}, (extract(epoch from clock_timestamp()) * 1000000)::bigint;"
        );
        let (Ok(()), Some(Ok(answer))) = (sent, answers.next()) else { break };
        let (answered, at_us) = answer.split_once('|').unwrap();
        assert_eq!(answered, number.to_string(), "PostgreSQL answered {answer}");
        let at = Timestamp::from_microsecond(at_us.parse().unwrap()).unwrap();
        noted.lock().unwrap_or_else(PoisonError::into_inner).push(Acknowledged { number, at });
        thread::sleep(pause);
    }
    drop(statements);
    let _ = psql.wait();
}
