//! Many runs, and what is printed of one that fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use crate::line::Log;
use crate::model::Figures;
use crate::world::{STEPS, run};

/// Panics of all threads, also of those whose panic only ends a task.
static PANICS: AtomicU64 = AtomicU64::new(0);
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// So long a failing run is looked for with fewer steps.
const SHRINK_MAX: Duration = Duration::from_secs(60);

/// Lines of a log that are printed.
const LOG_LINES: usize = 250;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            *LAST_PANIC.lock().unwrap() = info.to_string();
        }));
    });
}

/// Runs a seed; what went wrong, and the log.
fn attempt(seed: u64, steps: usize) -> (Result<Figures, String>, Vec<String>) {
    watch_panics();
    let log: Log = Arc::default();
    let before = PANICS.load(Ordering::SeqCst);
    let result = catch_unwind(AssertUnwindSafe(|| run(seed, steps, Arc::clone(&log))));
    let lines = log.lock().unwrap().clone();
    let panicked = PANICS.load(Ordering::SeqCst) != before;
    match result {
        Ok(figures) if !panicked => (Ok(figures), lines),
        _ => (Err(LAST_PANIC.lock().unwrap().clone()), lines),
    }
}

/// The fewest steps, of some, after which the run still fails.
fn shrink(seed: u64) -> usize {
    let begun = Instant::now();
    let mut fails = STEPS;
    let mut step = STEPS / 2;
    while step > 0 && begun.elapsed() < SHRINK_MAX {
        if fails > step && attempt(seed, fails - step).0.is_err() {
            fails -= step;
        } else {
            step /= 2;
        }
    }
    fails
}

fn report(seed: u64, steps: usize) -> String {
    let (result, log) = attempt(seed, steps);
    let first = log.len().saturating_sub(LOG_LINES);
    let tail = std::iter::once(&log[0]).chain(&log[first..]).cloned().collect::<Vec<_>>().join("\n");
    let why = result.err().unwrap_or_else(|| "it did not fail this time".into());
    format!(
        "{tail}\n\nseed {seed} fails after {steps} steps: {why}\nagain: LIFEBOAT_SIM_SEED={seed} LIFEBOAT_SIM_STEPS={steps} cargo test -p lifeboat-simulation -- --nocapture"
    )
}

#[test]
fn whatever_happens_points_are_what_was_on_the_disks() {
    if let Some(seed) = number("LIFEBOAT_SIM_SEED") {
        let steps = number("LIFEBOAT_SIM_STEPS").map_or(STEPS, |steps| usize::try_from(steps).unwrap());
        let (result, log) = attempt(seed, steps);
        println!("{}", log.join("\n"));
        match result {
            Ok(figures) => println!("{figures:?}"),
            Err(why) => {
                println!("seed {seed} fails: {why}");
                println!("{}", report(seed, shrink(seed)));
                panic!("seed {seed} failed");
            }
        }
        return;
    }
    let first = number("LIFEBOAT_SIM_FIRST").unwrap_or(1);
    let runs = number("LIFEBOAT_SIM_RUNS").unwrap_or(60);
    let mut total = Figures::default();
    let mut failed = Vec::new();
    for seed in first..first + runs {
        let (result, log) = attempt(seed, STEPS);
        match result {
            Ok(figures) => total += figures,
            Err(why) => {
                println!("{}\n{why}", log[0]);
                failed.push(seed);
            }
        }
    }
    println!("{runs} runs: {total:?}");
    if let Some(seed) = failed.first() {
        println!("{}", report(*seed, shrink(*seed)));
        panic!("{} of {runs} runs failed: {failed:?}", failed.len());
    }
    assert!(total.committed > runs && total.compared > runs, "the runs do not get far: {total:?}");
}

#[test]
fn a_seed_determines_everything() {
    let seed = number("LIFEBOAT_SIM_FIRST").unwrap_or(1);
    let (one, first) = attempt(seed, STEPS);
    let (other, second) = attempt(seed, STEPS);
    assert_eq!(one.is_ok(), other.is_ok());
    let different = first.iter().zip(&second).position(|(one, other)| one != other);
    if let Some(line) = different {
        panic!("two runs of a seed differ at line {line}: {:?} and {:?}", first[line], second[line]);
    }
    assert_eq!(first.len(), second.len());
}
