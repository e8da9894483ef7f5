//! Who is let in, who is not, and what each is told.

use std::fs;

use axum::routing::get;
use axum::{Json, Router};
use lifeboat_model::ServerId;
use lifeboat_transport::{
    AgentPeer, Client, ClientError, ClientSettings, OperatorPeer, Peer, ProcessServerPeer, TlsTrouble,
    UnreachableReason, VaultPeer,
};
use lifeboat_trust::{CertificateFacts, ClientCertificates, Credentials, Identity, Serial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::site::{DAY, Server, Site, agent, ago, operator, settings};

/// What a server says in TLS after the handshake races with the client's first request: once is no proof.
const TRIES: usize = 20;

fn router() -> Router {
    Router::new()
        .route("/who", get(|peer: Peer| async move { Json((peer.identity, peer.serial, peer.address)) }))
        .route("/agent", get(|AgentPeer(server): AgentPeer| async move { Json(server) }))
        .route("/process-server", get(|ProcessServerPeer(name): ProcessServerPeer| async move { Json(name) }))
        .route("/operator", get(|OperatorPeer(name): OperatorPeer| async move { Json(name) }))
        .route("/vault", get(|_: VaultPeer| async move { Json("vault") }))
        .route("/open", get(|| async { Json("open") }))
}

type Who = (Identity, Serial, std::net::SocketAddr);

async fn trouble(client: &Client) -> TlsTrouble {
    match client.get::<Who>("/who").await.unwrap_err() {
        error @ ClientError::Tls { .. } => {
            assert!(!error.is_retryable());
            let ClientError::Tls { trouble, .. } = error else { unreachable!() };
            trouble
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_identity_is_that_of_the_certificate() {
    let site = Site::new();
    let server = site.serve(router()).await;
    for identity in [agent(), operator(), Identity::Vault, Identity::ProcessServer("ps-1".into())] {
        let credentials = site.credentials(&identity);
        let client = Client::new(&server.url(), &credentials).unwrap();
        let (seen, serial, _) = client.get::<Who>("/who").await.unwrap();
        assert_eq!((seen, serial), (identity, credentials.serial()));
    }
    let by_name =
        Client::new(&format!("https://localhost:{}", server.address.port()), &site.credentials(&agent()));
    by_name.unwrap().get::<Who>("/who").await.unwrap();
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let client = site.client(&server, &agent());
    let (_, _, first) = client.get::<Who>("/who").await.unwrap();
    let (_, _, second) = client.get::<Who>("/who").await.unwrap();
    assert_eq!(first, second);
}

#[tokio::test]
async fn handlers_of_one_role_refuse_the_others() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let roles = [
        (agent(), "/agent"),
        (Identity::ProcessServer("ps-1".into()), "/process-server"),
        (operator(), "/operator"),
        (Identity::Vault, "/vault"),
    ];
    for (identity, own) in &roles {
        let client = site.client(&server, identity);
        for (_, path) in &roles {
            let answer = client.get::<String>(path).await;
            if path == own {
                answer.unwrap();
                continue;
            }
            let error = answer.unwrap_err();
            assert!(matches!(&error, ClientError::Api { status, .. } if status.as_u16() == 403), "{error:?}");
            assert_eq!(error.code(), Some("wrong_role"));
            assert!(error.to_string().contains(&identity.to_string()), "{error}");
            assert!(!error.is_retryable());
        }
    }
    let error = site.client(&server, &operator()).get::<ServerId>("/agent").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "this needs an agent's certificate (lifeboat://agent/ID), and the certificate shown is \
         lifeboat://operator/anna (an operator)"
    );
    assert_eq!(
        site.client(&server, &agent()).get::<ServerId>("/agent").await.unwrap(),
        ServerId::new(0xbeef)
    );
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let authority = site.authority.certificate_pem().as_bytes();
    for _ in 0..TRIES {
        let client = Client::anonymous(&server.url(), authority, ClientSettings::default()).unwrap();
        assert_eq!(trouble(&client).await, TlsTrouble::OwnMissing);
    }
}

#[tokio::test]
async fn where_certificates_are_optional_only_some_handlers_need_one() {
    let site = Site::new();
    let credentials = site.credentials(&Identity::Vault);
    let server = Server::start(router(), &credentials, ClientCertificates::Optional, settings()).await;
    let authority = site.authority.certificate_pem().as_bytes();
    let client = Client::anonymous(&server.url(), authority, ClientSettings::default()).unwrap();
    assert_eq!(client.get::<String>("/open").await.unwrap(), "open");
    assert_eq!(trouble(&client).await, TlsTrouble::OwnMissing);
    // But one that is shown is still checked.
    let expired = site.issue_at(&agent(), ago(DAY * 10)).credentials().unwrap();
    assert_eq!(trouble(&Client::new(&server.url(), &expired).unwrap()).await, TlsTrouble::OwnExpired);
    site.client(&server, &agent()).get::<Who>("/who").await.unwrap();
}

#[tokio::test]
async fn sites_do_not_trust_each_other() {
    let (here, there) = (Site::new(), Site::new());
    let server = here.serve(router()).await;
    let stranger = there.client(&server, &agent());
    assert_eq!(trouble(&stranger).await, TlsTrouble::PeerOfAnotherSite);

    // A stranger who trusts both sites gets further, and is refused by the server.
    let issued = there.issue(&agent());
    let both = format!("{}{}", here.authority.certificate_pem(), there.authority.certificate_pem());
    let credentials =
        Credentials::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes(), both.as_bytes())
            .unwrap();
    for _ in 0..TRIES {
        let client = Client::new(&server.url(), &credentials).unwrap();
        assert_eq!(trouble(&client).await, TlsTrouble::OwnOfAnotherSite);
    }
}

#[tokio::test]
async fn expired_certificates_are_refused_by_either_side() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let expired = site.issue_at(&agent(), ago(DAY * 10)).credentials().unwrap();
    for _ in 0..TRIES {
        assert_eq!(trouble(&Client::new(&server.url(), &expired).unwrap()).await, TlsTrouble::OwnExpired);
    }
    let early = site.issue_at(&agent(), ago(DAY) + DAY * 10).credentials().unwrap();
    assert_eq!(trouble(&Client::new(&server.url(), &early).unwrap()).await, TlsTrouble::OwnExpired);

    for (at, wanted) in
        [(ago(DAY * 10), TlsTrouble::PeerExpired), (ago(DAY) + DAY * 10, TlsTrouble::PeerNotYetValid)]
    {
        let credentials = site.issue_at(&Identity::Vault, at).credentials().unwrap();
        let server = Server::start(router(), &credentials, ClientCertificates::Required, settings()).await;
        assert_eq!(trouble(&site.client(&server, &agent())).await, wanted);
    }
}

#[tokio::test]
async fn revoked_certificates_are_refused_on_new_and_on_open_connections() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let credentials = site.credentials(&agent());
    let client = Client::new(&server.url(), &credentials).unwrap();
    client.get::<Who>("/who").await.unwrap();
    server.revocations.add(credentials.serial());
    assert_eq!(trouble(&client).await, TlsTrouble::OwnRevoked);
    for _ in 0..TRIES {
        assert_eq!(trouble(&Client::new(&server.url(), &credentials).unwrap()).await, TlsTrouble::OwnRevoked);
    }
    site.client(&server, &agent()).get::<Who>("/who").await.unwrap();
    // And that before any request was sent.
    let connector = TlsConnector::from(std::sync::Arc::new(credentials.client_config().unwrap()));
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let mut stream = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    let error = stream.read(&mut [0; 16]).await.unwrap_err().to_string();
    assert!(error.contains("CertificateRevoked"), "{error}");
}

#[tokio::test]
async fn a_server_must_have_the_name_by_which_it_is_called() {
    let site = Site::new();
    let elsewhere =
        site.authority.issue(&Identity::Vault, &["vault.example.org".into()], DAY, ago(DAY / 2)).unwrap();
    let server =
        Server::start(router(), &elsewhere.credentials().unwrap(), ClientCertificates::Required, settings())
            .await;
    assert_eq!(trouble(&site.client(&server, &agent())).await, TlsTrouble::PeerName);
}

#[tokio::test]
async fn a_certificate_without_hosts_is_no_servers() {
    let site = Site::new();
    let credentials = site.authority.issue(&agent(), &[], DAY, ago(DAY / 2)).unwrap().credentials().unwrap();
    let server = Server::start(router(), &credentials, ClientCertificates::Required, settings()).await;
    let error = site.client(&server, &agent()).get::<Who>("/who").await.unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. }), "{error:?}");
}

async fn serial_shown_by(server: &Server, credentials: &Credentials) -> Serial {
    let connector = TlsConnector::from(std::sync::Arc::new(credentials.client_config().unwrap()));
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let stream = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    CertificateFacts::read(&shown).unwrap().serial
}

#[tokio::test]
async fn renewed_certificates_are_taken_without_restart() {
    let site = Site::new();
    let bundle = site.dir.path().join("vault");
    let old = site.issue(&Identity::Vault);
    old.write_bundle(&bundle).unwrap();
    let credentials = Credentials::load(&bundle, ago(DAY / 2) + DAY / 2).unwrap();
    let server = Server::start(router(), &credentials, ClientCertificates::Required, settings()).await;
    let client = site.client(&server, &agent());
    client.get::<Who>("/who").await.unwrap();
    assert_eq!(serial_shown_by(&server, &site.credentials(&agent())).await, old.serial);

    let new = site.issue(&Identity::Vault);
    new.write_bundle(&bundle).unwrap();
    server.tls.reload_from(&bundle, ago(DAY / 2) + DAY / 2).unwrap();
    assert_eq!(serial_shown_by(&server, &site.credentials(&agent())).await, new.serial);
    client.get::<Who>("/who").await.unwrap();

    // What cannot be loaded does not replace what works.
    fs::write(bundle.join("certificate.pem"), "nonsense").unwrap();
    server.tls.reload_from(&bundle, ago(DAY / 2) + DAY / 2).unwrap_err();
    assert_eq!(serial_shown_by(&server, &site.credentials(&agent())).await, new.serial);
}

#[tokio::test]
async fn changed_files_are_found_by_looking() {
    let site = Site::new();
    let bundle = site.dir.path().join("vault");
    let old = site.issue(&Identity::Vault);
    old.write_bundle(&bundle).unwrap();
    let server =
        Server::start(router(), &old.credentials().unwrap(), ClientCertificates::Required, settings()).await;
    let tls = server.tls.clone();
    let looked_at = bundle.clone();
    let watch =
        tokio::spawn(
            async move { tls.reload_on_change(looked_at, std::time::Duration::from_millis(20)).await },
        );
    let credentials = site.credentials(&agent());
    // Written again and again, since the first may come before the first look.
    let found = async {
        loop {
            let new = site.issue(&Identity::Vault);
            new.write_bundle(&bundle).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            if serial_shown_by(&server, &credentials).await != old.serial {
                break;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), found).await.unwrap();
    watch.abort();
}

#[tokio::test]
async fn a_client_can_renew_its_certificate() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let client = site.client(&server, &agent());
    let clone = client.clone();
    clone.get::<Who>("/who").await.unwrap();
    let new = site.credentials(&agent());
    client.renew(&new).unwrap();
    assert_eq!(clone.get::<Who>("/who").await.unwrap().1, new.serial());
}

#[tokio::test]
async fn what_is_no_tls_is_dropped_and_harms_nobody() {
    let site = Site::new();
    let server = site.serve(router()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    site.client(&server, &agent()).get::<Who>("/who").await.unwrap();
}

#[tokio::test]
async fn a_peer_that_speaks_no_tls_is_told_apart() {
    let site = Site::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2 is here and not what was wanted\r\n").await;
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    let client = Client::new(&format!("https://{address}"), &site.credentials(&agent())).unwrap();
    let error = client.get::<Who>("/who").await.unwrap_err();
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn a_connection_that_dies_is_no_matter_of_trust() {
    let site = Site::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let client = Client::new(&format!("https://{address}"), &site.credentials(&agent())).unwrap();
    let error = client.get::<Who>("/who").await.unwrap_err();
    assert!(crate::site::is_unreachable(&error, &UnreachableReason::ConnectionLost), "{error:?}");
    assert!(error.is_retryable());
}
