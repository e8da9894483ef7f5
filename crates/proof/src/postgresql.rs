//! A real PostgreSQL, with its data and its write-ahead log where the caller wants them.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::run;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A running server. Stopped when dropped.
pub struct PostgreSql {
    data: PathBuf,
    socket_dir: PathBuf,
    port: String,
}

impl PostgreSql {
    /// Makes a cluster in `data/pg` with its log in `wal/pg`, and starts it.
    pub fn create(data: &Path, wal: &Path, socket_dir: &Path, port: u16) -> Self {
        let (data, wal) = (data.join("pg"), wal.join("pg"));
        for dir in [&data, &wal] {
            fs::create_dir(dir).unwrap();
            own(dir);
        }
        let words = ["--pgdata", text(&data), "--waldir", text(&wal), "--auth=trust"];
        as_postgres(&format!("{BIN}/initdb"), &words);
        Self::start(&data, socket_dir, port)
    }

    /// Starts the cluster in `data`, recovering it if it was not shut down.
    pub fn start(data: &Path, socket_dir: &Path, port: u16) -> Self {
        own(socket_dir);
        let _ = fs::remove_file(data.join("postmaster.pid"));
        let port = port.to_string();
        let options = format!("-p {port} -k {} -c listen_addresses=''", socket_dir.display());
        let log = socket_dir.join("server.log");
        let words = ["start", "-w", "-t", "120", "-D", text(data), "-l", text(&log), "-o", &options];
        let started = std::panic::catch_unwind(|| as_postgres(&format!("{BIN}/pg_ctl"), &words));
        if let Err(panic) = started {
            eprintln!("--- {}\n{}", log.display(), fs::read_to_string(&log).unwrap_or_default());
            std::panic::resume_unwind(panic);
        }
        Self { data: data.to_owned(), socket_dir: socket_dir.to_owned(), port }
    }

    /// Runs SQL and answers the rows, unaligned, without headings.
    pub fn sql(&self, statement: &str) -> String {
        let words =
            ["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", text(&self.socket_dir), "-p", &self.port];
        let words = words.iter().copied().chain(["-c", statement, "postgres"]);
        as_postgres(&format!("{BIN}/psql"), &words.collect::<Vec<_>>())
    }

    /// Makes the tables of pgbench.
    pub fn pgbench_init(&self, scale: u32) {
        let scale = scale.to_string();
        let words = ["-i", "-q", "-s", &scale, "-h", text(&self.socket_dir), "-p", &self.port, "postgres"];
        as_postgres(&format!("{BIN}/pgbench"), &words);
    }

    /// Starts pgbench with `words` added; the caller waits for it or ends it.
    pub fn pgbench(&self, words: &[&str]) -> Child {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=postgres",
            "--regid=postgres",
            "--init-groups",
            &format!("{BIN}/pgbench"),
            "-n",
        ]);
        command.args(["-h", text(&self.socket_dir), "-p", &self.port]).args(words).arg("postgres");
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Fails unless the sums of pgbench's four tables agree and every index is sound.
    pub fn check_pgbench(&self) {
        let sums = self.sql(
            "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
             (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)",
        );
        let sums: Vec<_> = sums.split('|').collect();
        assert!(sums.iter().all(|sum| *sum == sums[0]), "the sums of pgbench's tables differ: {sums:?}");
        let words = [
            "--all",
            "--install-missing",
            "--heapallindexed",
            "-h",
            text(&self.socket_dir),
            "-p",
            &self.port,
        ];
        as_postgres(&format!("{BIN}/pg_amcheck"), &words);
    }
}

impl Drop for PostgreSql {
    fn drop(&mut self) {
        let pg_ctl = format!("{BIN}/pg_ctl");
        let words = [
            "--reuid=postgres",
            "--regid=postgres",
            "--init-groups",
            &pg_ctl,
            "stop",
            "-w",
            "-m",
            "immediate",
            "-D",
        ];
        let _ = Command::new("setpriv").args(words).arg(&self.data).current_dir("/").output();
    }
}

fn as_postgres(program: &str, words: &[&str]) -> String {
    let before = ["--reuid=postgres", "--regid=postgres", "--init-groups", "env", "-C", "/", program];
    run("setpriv", before.iter().chain(words))
}

fn own(dir: &Path) {
    let id = |flag| run("id", [flag, "postgres"]).parse().unwrap();
    chown(dir, Some(id("-u")), Some(id("-g"))).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
