//! What callers read when something is refused or fails.

use std::time::Duration;

use axum::extract::Query;
use axum::routing::{get, post};
use axum::{Json, Router};
use lifeboat_transport::{
    ApiError, Client, ClientError, ClientSettings, Method, RequestId, StatusCode, UnreachableReason,
};
use serde::{Deserialize, Serialize};

use crate::site::{Site, agent, is_unreachable};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Thing {
    number: u64,
}

async fn panics() -> Json<Thing> {
    panic!("a handler that does not think of everything")
}

fn router() -> Router {
    Router::new()
        .route(
            "/double",
            post(|Json(thing): Json<Thing>| async move { Json(Thing { number: thing.number * 2 }) }),
        )
        .route("/query", get(|Query(thing): Query<Thing>| async move { Json(thing) }))
        .route("/nothing", post(|| async {}).delete(|| async { StatusCode::NO_CONTENT }))
        .route(
            "/refuse",
            get(|| async { ApiError::conflict("volume_open", "volume 7 is open; close it first") }),
        )
        .route(
            "/full",
            get(|| async { ApiError::no_room("spool_full", "the spool is full; wait or make room") }),
        )
        .route("/panic", get(panics))
        .route("/id", get(|id: axum::Extension<RequestId>| async move { Json(id.0.0) }))
        .route("/never", get(std::future::pending::<()>))
        .route("/text", get(|| async { "no json" }))
        .route("/long", get(|| async { Json("x".repeat(100_000)) }))
        .route(
            "/chunked",
            get(|| async {
                let pieces = (0..100).map(|_| Ok::<_, std::io::Error>("x".repeat(1000)));
                axum::body::Body::from_stream(futures::stream::iter(pieces))
            }),
        )
}

#[tokio::test]
async fn json_goes_there_and_back() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let client = site.client(&server, &agent());
    assert_eq!(client.post::<Thing>("/double", &Thing { number: 21 }).await.unwrap(), Thing { number: 42 });
    let asked = client.call(Method::GET, "/query").query(&Thing { number: 7 }).send::<Thing>().await;
    assert_eq!(asked.unwrap(), Thing { number: 7 });
    client.post::<()>("/nothing", &()).await.unwrap();
    client.delete::<()>("/nothing").await.unwrap();
}

#[tokio::test]
async fn a_refusal_arrives_as_it_was_meant() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let client = site.client(&server, &agent());
    let error = client.get::<Thing>("/refuse").await.unwrap_err();
    assert_eq!(error.to_string(), "volume 7 is open; close it first");
    assert_eq!(error.code(), Some("volume_open"));
    assert!(!error.is_retryable());
    let ClientError::Api { status, request_id, .. } = error else { panic!("{error:?}") };
    assert_eq!((status, request_id.as_str()), (StatusCode::CONFLICT, "0000000000000051-0"));
    assert_eq!(client.get::<String>("/id").await.unwrap(), "0000000000000051-1");
    let download = client.call(Method::GET, "/text").download().await.unwrap();
    assert_eq!(download.headers()["x-request-id"], "0000000000000051-2");
    let full = client.get::<Thing>("/full").await.unwrap_err();
    assert!(full.is_retryable(), "{full:?}");
}

#[tokio::test]
async fn what_axum_refuses_has_the_same_form() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let client = site.client(&server, &agent());
    let code = |error: ClientError| match error {
        ClientError::Api { status, code, request_id, message } => {
            assert!(!request_id.is_empty() && !message.is_empty());
            (status.as_u16(), code)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(code(client.get::<()>("/unknown").await.unwrap_err()), (404, "no_such_path".into()));
    assert_eq!(code(client.put::<()>("/refuse", &()).await.unwrap_err()), (405, "method_not_allowed".into()));
    assert_eq!(code(client.post::<()>("/double", "x").await.unwrap_err()), (422, "bad_request".into()));
    let large = "x".repeat(3 << 20);
    assert_eq!(code(client.post::<()>("/double", &large).await.unwrap_err()), (413, "body_too_large".into()));
}

#[tokio::test]
async fn a_handler_that_panics_answers_and_the_server_goes_on() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let client = site.client(&server, &agent());
    let error = client.get::<Thing>("/panic").await.unwrap_err();
    assert_eq!(error.code(), Some("internal"));
    assert!(error.is_retryable());
    client.post::<()>("/nothing", &()).await.unwrap();
}

#[tokio::test]
async fn answers_are_bounded_and_must_be_what_was_asked_for() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let settings = ClientSettings { json_bytes_max: 10_000, ..ClientSettings::default() };
    let client = Client::with_settings(&server.url(), &site.credentials(&agent()), settings).unwrap();
    for path in ["/long", "/chunked"] {
        let error = client.get::<String>(path).await.unwrap_err();
        assert!(matches!(error, ClientError::BodyTooLarge { bytes_max: 10_000, .. }), "{path}: {error:?}");
    }
    let error = client.get::<Thing>("/text").await.unwrap_err();
    assert!(matches!(error, ClientError::BadBody { .. }), "{error:?}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn who_cannot_be_reached_is_told_apart_from_who_refuses() {
    let site = Site::new();
    let credentials = site.credentials(&agent());
    // Bound and closed again: nothing listens there now.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::new(&format!("https://{free}"), &credentials).unwrap();
    let error = client.get::<()>("/x").await.unwrap_err();
    assert!(is_unreachable(&error, &UnreachableReason::Refused), "{error:?}");
    assert!(error.is_retryable());
    assert!(error.to_string().starts_with(&format!("{free} cannot be reached")), "{error}");

    let client = Client::new("https://no-such-host.invalid", &credentials).unwrap();
    let error = client.get::<()>("/x").await.unwrap_err();
    assert!(is_unreachable(&error, &UnreachableReason::UnknownHost), "{error:?}");

    let server = site.serve(router()).await;
    let client = site.client(&server, &agent());
    let error = client
        .call(Method::GET, "/never")
        .timeout(Duration::from_millis(100))
        .send::<()>()
        .await
        .unwrap_err();
    assert!(is_unreachable(&error, &UnreachableReason::Timeout), "{error:?}");
}

#[test]
fn addresses_that_cannot_be_called_are_refused() {
    let credentials = Site::new().credentials(&agent());
    for address in ["", "vault:443", "http://vault", "https://", "https://a:b@vault", "https://vault/?x=1"] {
        let error = Client::new(address, &credentials).unwrap_err();
        assert!(matches!(error, ClientError::Address { .. }), "{address}: {error:?}");
    }
    let client = Client::new("https://vault.example.org/lifeboat/", &credentials).unwrap();
    assert_eq!(client.base_url(), "https://vault.example.org/lifeboat");
    assert_eq!(client.peer(), "vault.example.org:443");
}
