//! A planned failover loses no write; one that is given up leaves the source as it was; and the vault may be killed
//! at every step of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod killed;
mod source;

use serde_json::Value;

use crate::source::{STOP, Source, set_commands};

/// A planned failover that is to fail.
fn fails(source: &Source, word: &str) {
    source.expect_to_go_on();
    let output = source.site.lifeboat(["failover", "plan", "source"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let job: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(job["state"], "failed", "{job}");
    assert!(job["message"].as_str().unwrap().contains(word), "{job}");
    source.goes_on(&job);
}

#[test]
fn a_planned_failover_loses_nothing_and_one_that_fails_leaves_the_source_as_it_was() {
    let source = Source::start();
    let Source { site, service, .. } = &source;
    set_commands(site, service, "echo the service will not stop >&2; exit 7");
    fails(&source, "the service will not stop");

    set_commands(site, service, STOP);
    site.json(["target", "set", "source", "--probe", "console=never said", "--up-within", "3s"]);
    fails(&source, "did not come up");
    site.json(["target", "set", "source", "--probe", "default", "--up-within", "5m"]);

    service.await_more();
    site.json(["network", "create", "moved", "--subnet", "192.0.2.0/24", "--dhcp"]);
    let job = site.json(["failover", "plan", "source", "--network", "moved"]);
    source.is_replaced(&job);
    let machine = &site.json(["machine", "list"])[0];
    assert_eq!(machine["network"], "moved", "{machine}");
    assert_eq!(site.json(["failover", "commit", "source"])["state"], "done");
}
