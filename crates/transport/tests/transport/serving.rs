//! How a listener starts, stops, and bears callers who do not behave.

use std::sync::Arc;
use std::time::Duration;

use axum::routing::{get, put};
use axum::{Json, Router};
use lifeboat_transport::{ApiError, Listener, ListenerSettings, ServeError, Stopping, UnreachableReason};
use lifeboat_trust::{ClientCertificates, Identity, anonymous_client_config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use crate::site::{Server, Site, agent, is_unreachable, settings};

/// A handler that says when it has begun and ends when it is told.
#[derive(Clone, Default)]
struct Gate {
    begun: Arc<Notify>,
    open: Arc<Notify>,
}

impl Gate {
    fn router(&self) -> Router {
        let gate = self.clone();
        let wait = move || async move {
            gate.begun.notify_one();
            gate.open.notified().await;
            Json("done")
        };
        Router::new().route("/wait", get(wait)).route("/open", get(|| async { Json("open") }))
    }
}

#[tokio::test]
async fn a_taken_port_is_a_sentence() {
    let first = Listener::bind(settings()).await.unwrap();
    let address = first.local_address();
    let error = Listener::bind(ListenerSettings::new(address, 0)).await.unwrap_err();
    assert!(matches!(error, ServeError::PortTaken(_)), "{error:?}");
    let start = format!("port {} on 127.0.0.1 is taken by another program: ", address.port());
    assert!(error.to_string().starts_with(&start), "{error}");
    let elsewhere = ListenerSettings::new("192.0.2.1:0".parse().unwrap(), 0);
    assert!(matches!(Listener::bind(elsewhere).await, Err(ServeError::NoSuchAddress(_))));
}

#[tokio::test]
async fn stopping_lets_the_request_in_flight_finish() {
    let site = Site::new();
    let gate = Gate::default();
    let mut server = site.serve(gate.router()).await;
    let client = site.client(&server, &agent());
    let idle = site.client(&server, &agent());
    idle.get::<String>("/open").await.unwrap();
    let call = tokio::spawn(async move { client.get::<String>("/wait").await });
    gate.begun.notified().await;
    let stopped = server.stop();
    // Refused once the listener is closed, which is before the request ends.
    let refused = async {
        while !is_unreachable(
            &site.client(&server, &agent()).get::<String>("/open").await.unwrap_err(),
            &UnreachableReason::Refused,
        ) {}
    };
    tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap();
    assert!(!stopped.is_finished());
    gate.open.notify_one();
    assert_eq!(call.await.unwrap().unwrap(), "done");
    stopped.await.unwrap();
}

#[tokio::test]
async fn a_handler_that_waits_hears_that_the_listener_stops() {
    let site = Site::new();
    let begun = Arc::new(Notify::new());
    let told = Arc::clone(&begun);
    let wait = move |stopping: Stopping| async move {
        told.notify_one();
        stopping.stopped().await;
        Json("stopping")
    };
    // A grace time that no test outlives: only the handler can end this.
    let settings = ListenerSettings { grace: Duration::from_secs(3600), ..settings() };
    let credentials = site.credentials(&Identity::Vault);
    let router = Router::new().route("/wait", get(wait));
    let mut server = Server::start(router, &credentials, ClientCertificates::Required, settings).await;
    let client = site.client(&server, &agent());
    let call = tokio::spawn(async move { client.get::<String>("/wait").await });
    begun.notified().await;
    tokio::time::timeout(Duration::from_secs(60), server.stop()).await.unwrap().unwrap();
    assert_eq!(call.await.unwrap().unwrap(), "stopping");
}

#[tokio::test]
async fn stopping_cuts_off_what_does_not_finish() {
    let site = Site::new();
    let gate = Gate::default();
    let credentials = site.credentials(&Identity::Vault);
    let settings = ListenerSettings { grace: Duration::from_millis(50), ..settings() };
    let mut server = Server::start(gate.router(), &credentials, ClientCertificates::Required, settings).await;
    let client = site.client(&server, &agent());
    let call = tokio::spawn(async move { client.get::<String>("/wait").await });
    gate.begun.notified().await;
    server.stop().await.unwrap();
    let error = call.await.unwrap().unwrap_err();
    assert!(is_unreachable(&error, &UnreachableReason::ConnectionLost), "{error:?}");
}

#[tokio::test]
async fn who_connects_and_says_nothing_loses_its_place() {
    let site = Site::new();
    let credentials = site.credentials(&Identity::Vault);
    let settings =
        ListenerSettings { connections_max: 1, handshake_timeout: Duration::from_secs(2), ..settings() };
    let server =
        Server::start(Gate::default().router(), &credentials, ClientCertificates::Required, settings).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let client = site.client(&server, &agent());
    // There is one place, and the silent one has it until its time is over.
    assert_eq!(client.get::<String>("/open").await.unwrap(), "open");
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let site = Site::new();
    let gate = Gate::default();
    let credentials = site.credentials(&Identity::Vault);
    let settings = ListenerSettings { connections_max: 2, ..settings() };
    let server = Server::start(gate.router(), &credentials, ClientCertificates::Required, settings).await;
    let callers: Vec<_> = (0..6)
        .map(|_| {
            let client = site.client(&server, &agent());
            tokio::spawn(async move { client.get::<String>("/wait").await })
        })
        .collect();
    for _ in 0..6 {
        gate.begun.notified().await;
        gate.open.notify_one();
    }
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), "done");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_the_next_call_makes_a_new_one() {
    let site = Site::new();
    let credentials = site.credentials(&Identity::Vault);
    let settings =
        ListenerSettings { header_timeout: Duration::from_millis(50), connections_max: 1, ..settings() };
    let server =
        Server::start(Gate::default().router(), &credentials, ClientCertificates::Required, settings).await;
    // There is one place: the second client gets it when the first one's connection was idle too long.
    for client in [site.client(&server, &agent()), site.client(&server, &agent())] {
        assert_eq!(client.get::<String>("/open").await.unwrap(), "open");
    }
}

/// A TLS connection on which the test writes and reads by itself.
async fn raw(server: &Server, config: rustls::ClientConfig) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(server.address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), tcp).await.unwrap()
}

#[tokio::test]
async fn an_answer_reaches_a_caller_who_sends_everything_before_reading() {
    let site = Site::new();
    let refuse = || async { ApiError::no_room("spool_full", "the spool is full; wait or make room") };
    let server = site.serve(Router::new().route("/take", put(refuse))).await;
    let mut stream = raw(&server, site.credentials(&agent()).client_config().unwrap()).await;
    let body = vec![7; 4 << 20];
    let head = format!("PUT /take HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 507") && answer.contains("spool_full"), "{answer}");
}

#[tokio::test]
async fn the_reason_of_a_failed_handshake_reaches_a_caller_who_already_sends() {
    let site = Site::new();
    let server = site.serve(Gate::default().router()).await;
    for _ in 0..20 {
        let config = anonymous_client_config(site.authority.certificate_pem().as_bytes()).unwrap();
        let mut stream = raw(&server, config).await;
        // Some of it comes after the server has made up its mind.
        for _ in 0..16 {
            stream.write_all(&[b'x'; 4096]).await.unwrap();
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        let error = stream.read(&mut [0; 16]).await.unwrap_err().to_string();
        assert!(error.contains("CertificateRequired"), "{error}");
    }
}
