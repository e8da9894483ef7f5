use std::time::Duration;

use lifeboat_api::RequestState;
use lifeboat_model::{PointKind, ReplicationPolicy, Span};
use lifeboat_wire::agent::{CommandKind, Comparison, Outcome, RequestResult};
use lifeboat_wire::event::{Event, Severity};
use lifeboat_wire::process_server::ServerResult;

use crate::support::*;

const TAKE: CommandKind = CommandKind::TakePoint { kind: PointKind::Crash };

fn result(id: &str, outcome: Outcome) -> ServerResult {
    let request = u64::from_str_radix(id, 16).unwrap();
    ServerResult { server: SERVER, result: RequestResult { request, outcome } }
}

#[tokio::test]
async fn a_point_that_was_asked_for_is_done_when_it_is_committed() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    register(vault, SERVER, "db1", 0).await;
    let before = vault.assignments(PROCESS_SERVER).await.unwrap();
    let request = vault.ask(SERVER, TAKE, at(5)).await.unwrap();
    assert_eq!(
        vault.ask(SERVER, TAKE, at(6)).await.unwrap().id,
        request.id,
        "asked twice, it is one request"
    );
    let told = vault.assignments_after(PROCESS_SERVER, Some(before.revision), Duration::ZERO).await.unwrap();
    assert_ne!(told.revision, before.revision);
    assert_eq!(told.servers[&SERVER].commands.len(), 1);
    let taken = result(&request.id, Outcome::PointTaken { point: point(SERVER, 10) });
    vault.take_result(&taken, at(10)).await.unwrap();
    assert_eq!(vault.request(&request.id).await.unwrap().state, RequestState::Running);
    assert!(vault.assignments(PROCESS_SERVER).await.unwrap().servers[&SERVER].commands.is_empty());
    take(vault, 10, &[(0, 1, 1)]).await;
    let done = vault.request(&request.id).await.unwrap();
    assert_eq!(
        (done.state, done.point, done.ended),
        (RequestState::Done, Some(point(SERVER, 10)), Some(at(11)))
    );
    let committed = vault.assignments(PROCESS_SERVER).await.unwrap().servers[&SERVER].committed;
    assert_eq!(committed, Some(point(SERVER, 10)));
}

#[tokio::test]
async fn a_result_that_comes_after_the_commit_ends_the_request_at_once() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    let request = fixture.vault.ask(SERVER, TAKE, at(5)).await.unwrap();
    take(&fixture.vault, 10, &[(0, 1, 1)]).await;
    let taken = result(&request.id, Outcome::PointTaken { point: point(SERVER, 10) });
    fixture.vault.take_result(&taken, at(12)).await.unwrap();
    fixture.vault.take_result(&taken, at(13)).await.unwrap();
    let done = fixture.vault.request(&request.id).await.unwrap();
    assert_eq!((done.state, done.ended), (RequestState::Done, Some(at(12))));
}

#[tokio::test]
async fn waiting_for_a_request_ends_with_it() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    let request = fixture.vault.ask(SERVER, CommandKind::Resync, at(5)).await.unwrap();
    let failed = result(&request.id, Outcome::Failed { message: "The disk is gone.".into() });
    let (waited, ()) =
        tokio::join!(fixture.vault.request_within(&request.id, Duration::from_secs(60)), async {
            tokio::task::yield_now().await;
            fixture.vault.take_result(&failed, at(6)).await.unwrap();
        });
    let waited = waited.unwrap();
    assert_eq!((waited.state, waited.message.as_deref()), (RequestState::Failed, Some("The disk is gone.")));
}

#[tokio::test]
async fn a_comparison_that_finds_differences_is_critical() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    take(&fixture.vault, 10, &[(0, 1, 1)]).await;
    let request = fixture.vault.ask(SERVER, CommandKind::Compare, at(11)).await.unwrap();
    let disks = vec![Comparison { different_blocks: 2, equal_blocks: 7, ..Comparison::default() }];
    let compared = Outcome::Compared { point: point(SERVER, 10), disks };
    fixture.vault.take_result(&result(&request.id, compared), at(12)).await.unwrap();
    let report = fixture.vault.request(&request.id).await.unwrap().report.unwrap();
    assert!(!report.good && report.different_blocks == 2 && report.equal_blocks == 7);
    let server = fixture.vault.server(SERVER, at(13)).await.unwrap();
    assert_eq!(server.compared_point, Some(point(SERVER, 10)));
    let events = fixture.vault.catalog().events(Severity::Critical, Some(SERVER), 10).await.unwrap();
    assert_eq!(events[0].code, "copy_differs");
}

#[tokio::test]
async fn requests_survive_a_restart_and_fail_after_a_day_without_an_answer() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    let request = fixture.vault.ask(SERVER, TAKE, at(5)).await.unwrap();
    let fixture = fixture.reopen(None).await;
    fixture.vault.expire_requests(at(86_000)).await.unwrap();
    assert_eq!(fixture.vault.request(&request.id).await.unwrap().state, RequestState::Running);
    fixture.vault.expire_requests(at(86_406)).await.unwrap();
    assert_eq!(fixture.vault.request(&request.id).await.unwrap().state, RequestState::Failed);
    assert_eq!(fixture.vault.request("zz").await.unwrap_err().status(), 404);
}

#[tokio::test]
async fn a_process_server_gets_what_concerns_it_and_the_same_revision_for_the_same() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    assert!(fixture.vault.assignments("hall-3").await.unwrap().servers.is_empty());
    let before = fixture.vault.assignments(PROCESS_SERVER).await.unwrap();
    let fixture = fixture.reopen(None).await;
    assert_eq!(fixture.vault.assignments(PROCESS_SERVER).await.unwrap(), before);
    let policy = ReplicationPolicy { interval: Span::seconds(9), ..ReplicationPolicy::default() };
    let waiting =
        fixture.vault.assignments_after(PROCESS_SERVER, Some(before.revision), Duration::from_secs(60));
    let (changed, ()) = tokio::join!(waiting, async {
        tokio::task::yield_now().await;
        fixture.vault.set_policy(SERVER, &policy).await.unwrap();
    });
    assert_eq!(changed.unwrap().servers[&SERVER].policy, policy);
}

fn event(seconds: i64, code: &str, severity: Severity) -> Event {
    Event {
        time: at(seconds),
        severity,
        code: code.into(),
        server: Some(SERVER),
        disk: None,
        message: format!("{code} at {seconds}"),
        next_step: String::new(),
    }
}

#[tokio::test]
async fn what_repeats_within_a_minute_is_told_once() {
    let fixture = Fixture::new().await;
    let vault = &fixture.vault;
    for (seconds, code) in [(10, "a"), (69, "a"), (70, "a"), (70, "b")] {
        vault.note(event(seconds, code, Severity::Warning)).await.unwrap();
    }
    vault.note(event(80, "c", Severity::Information)).await.unwrap();
    let told = vault.catalog().events(Severity::Warning, None, 10).await.unwrap();
    let messages: Vec<_> = told.iter().map(|event| event.message.as_str()).collect();
    assert_eq!(messages, ["b at 70", "a at 70", "a at 10"]);
    let all = vault.catalog().events(Severity::Information, Some(SERVER), 10).await.unwrap();
    assert_eq!(all.len(), 4);
}

#[tokio::test]
async fn the_newest_ten_thousand_events_are_kept() {
    let fixture = Fixture::new().await;
    let events: Vec<_> = (0..10_005).map(|minute| event(minute * 61, "a", Severity::Warning)).collect();
    fixture.vault.note_all(&events).await.unwrap();
    let kept = fixture.vault.catalog().events(Severity::Information, None, 20_000).await.unwrap();
    assert_eq!((kept.len(), kept.last().unwrap().number), (10_000, 6));
}

/// One event of a role whose clock is far off must not keep all others from being taken.
#[tokio::test]
async fn an_event_of_any_time_is_taken() {
    let fixture = Fixture::new().await;
    for time in [jiff::Timestamp::MIN, jiff::Timestamp::MAX] {
        let odd = Event { time, ..event(0, "odd", Severity::Warning) };
        fixture.vault.note_all(&[odd, event(0, "b", Severity::Critical)]).await.unwrap();
    }
    let told = fixture.vault.catalog().events(Severity::Information, None, 10).await.unwrap();
    assert_eq!(told.len(), 3, "{told:#?}");
}
