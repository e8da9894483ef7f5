//! The vault is killed at every step of a planned failover, on the way there and on the way back.
//!
//! Steps are over in milliseconds. So the vault is let run for a moment at a time, and when it stands still its catalog
//! says whether it is in the step at which it is to be killed.

use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_proof::{PATIENCE, Site, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::runtime::Runtime;

use crate::source::{STOP, Source, set_commands};

/// The steps of a planned failover.
const STEPS: usize = 7;
const AWAIT_UP: usize = 5;
const RETIRE: usize = 6;

/// What the vault's catalog says of jobs.
struct Jobs {
    runtime: Runtime,
    catalog: SqliteConnection,
}

impl Jobs {
    fn of(site: &Site) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let path: &Path = &site.dir.join("vault/state/catalog.sqlite");
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        let catalog = runtime.block_on(options.connect()).unwrap();
        Self { runtime, catalog }
    }

    /// The state of a step. `None` if the vault stands in the middle of an access to its catalog: it holds a lock then
    /// that it would have let go in an instant (`SQLITE_BUSY`), or even the one for a new log (`SQLITE_PROTOCOL`).
    fn step(&mut self, job: &str, number: usize) -> Option<String> {
        let query = sqlx::query("SELECT state FROM job_steps WHERE job = $1 AND number = $2")
            .bind(job.to_owned())
            .bind(i64::try_from(number).unwrap());
        match self.runtime.block_on(query.fetch_one(&mut self.catalog)) {
            Ok(row) => Some(row.get(0)),
            Err(sqlx::Error::Database(error)) if is_locked(error.as_ref()) => None,
            Err(error) => panic!("step {number} of job {job}: {error}"),
        }
    }

    fn end(self) {
        self.runtime.block_on(self.catalog.close()).unwrap();
    }
}

/// Whether an error of SQLite's is `SQLITE_BUSY` or `SQLITE_PROTOCOL`. The low byte of an extended code is its kind.
fn is_locked(error: &dyn DatabaseError) -> bool {
    let code: u32 = error.code().unwrap().parse().unwrap();
    matches!(code & 0xff, 5 | 15)
}

/// Kills the vault when the step of the job is in this state; answers whether it was seen in it, and did not have
/// left it already.
fn kill_when(site: &Site, job: &str, step: usize, wanted: &str) -> bool {
    let pid = wait_for("the vault to run", || site.role("vault"));
    let vault = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let mut jobs = Jobs::of(site);
    let begun = Instant::now();
    let before: &[&str] = if wanted == "running" { &["waiting"] } else { &["waiting", "running", "done"] };
    let was_seen = loop {
        kill_process(vault, Signal::STOP).unwrap();
        let state = jobs.step(job, step);
        if let Some(state) = state.as_deref().filter(|state| !before.contains(state)) {
            break state == wanted;
        }
        kill_process(vault, Signal::CONT).unwrap();
        assert!(begun.elapsed() < PATIENCE, "step {step} is {state:?}\n{}", site.logs());
        std::thread::sleep(Duration::from_micros(500));
    };
    kill_process(vault, Signal::KILL).unwrap();
    jobs.end();
    // So that the next vault is not taken for this one.
    wait_for("the vault to be gone", || (site.role("vault") != Some(pid)).then_some(()));
    was_seen
}

fn begin(site: &Site) -> String {
    let job = site.json(["failover", "plan", "source", "--no-wait"]);
    assert_eq!(job["steps"].as_array().unwrap().len(), STEPS, "{job}");
    job["id"].as_str().unwrap().to_owned()
}

/// The job, when it is as wanted. While the vault is away nobody says how it is.
fn job_when(site: &Site, job: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    wait_for(&format!("job {job} {what}\n{}", site.logs()), || {
        let output = site.lifeboat(["job", "show", job]);
        let shown: Value = serde_json::from_slice(&output.stdout).ok()?;
        assert_ne!(shown["state"], "failed", "{shown}");
        is_it(&shown).then_some(shown)
    })
}

/// A planned failover at some of whose steps the vault is killed, and which is then cancelled, with the vault killed
/// on the way back from the step `undone`. All is as before then.
fn goes_back(source: &Source, steps: &[usize], undone: usize) {
    let site = &source.site;
    source.expect_to_go_on();
    let job = begin(site);
    for step in steps {
        let was_seen = kill_when(site, &job, *step, "running");
        eprintln!("killed in step {step}: {was_seen}");
    }
    job_when(site, &job, "to wait for its machine", |job| job["steps"][AWAIT_UP]["state"] == "running");
    wait_for("the vault to take the order", || {
        site.lifeboat(["job", "cancel", &job, "--no-wait"]).status.success().then_some(())
    });
    let was_seen = kill_when(site, &job, undone, "undone");
    eprintln!("killed when step {undone} was undone: {was_seen}");
    let job = job_when(site, &job, "to end", |job| job["state"] == "cancelled");
    source.goes_on(&job);
}

#[test]
fn a_planned_failover_goes_on_or_back_whenever_the_vault_is_killed() {
    let source = Source::start();
    let Source { site, service, .. } = &source;
    set_commands(site, service, STOP);
    site.json(["target", "set", "source", "--probe", "console=never said", "--up-within", "10m"]);
    // The machine is removed first, and the source is started last.
    goes_back(&source, &[0, 2, 4], 4);
    goes_back(&source, &[1, 3, AWAIT_UP], 1);

    site.json(["target", "set", "source", "--probe", "default", "--up-within", "5m"]);
    service.await_more();
    let job = begin(site);
    for step in [AWAIT_UP, RETIRE] {
        let was_seen = kill_when(site, &job, step, "running");
        eprintln!("killed in step {step}: {was_seen}");
    }
    let job = job_when(site, &job, "to end", |job| job["state"] == "done");
    source.is_replaced(&job);
    assert_eq!(site.json(["machine", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(site.json(["volume", "list"]).as_array().unwrap().len(), 1);
}
