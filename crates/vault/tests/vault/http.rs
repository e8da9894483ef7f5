//! The vault over mutual TLS, as process servers and operators use it.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_api::{Point, Policy, Request, RequestState, Server, Status};
use lifeboat_hrl::DiskKey;
use lifeboat_model::{DiskNumber, Part, PointKind};
use lifeboat_transport::{Client, ClientError, Method};
use lifeboat_trust::{Identity, SiteAuthority};
use lifeboat_vault::{RunningVault, Settings};
use lifeboat_wire::agent::{AgentReport, CaptureMode};
use lifeboat_wire::process_server::{
    Assignments, CommitPoint, CommitReceipt, DiskRegistration, FileDescription, Grant, GrantRequest,
    ProcessServerReport, RegisterDisk, ServerReport, SpoolReport, SpoolState, VaultHello,
};
use lifeboat_wire::process_server_path;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::*;

/// A site with its authority and a vault that answers.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub authority: SiteAuthority,
    url: String,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
}

pub fn settings(dir: &Path) -> Settings {
    let text = format!(
        "listen = \"127.0.0.1:0\"\ncredentials = {:?}\nstate = {:?}\nrevocations = {:?}\n\
         [nbd]\nsocket_directory = {:?}\nlisten = \"127.0.0.1:0\"\n",
        dir.join("credentials"),
        dir.join("state"),
        dir.join("authority/revoked.json"),
        dir.join("nbd"),
    );
    Settings::parse(&text).unwrap()
}

pub fn authority(dir: &Path) -> SiteAuthority {
    let now = Timestamp::now();
    let authority = SiteAuthority::create(&dir.join("authority"), "test", now).unwrap();
    let hosts = ["127.0.0.1".to_owned()];
    let day = Duration::from_secs(86_400);
    let issued = authority.issue(&Identity::Vault, &hosts, day, now).unwrap();
    issued.write_bundle(&dir.join("credentials")).unwrap();
    authority
}

pub fn client(authority: &SiteAuthority, url: &str, identity: &Identity) -> Client {
    let issued = authority.issue(identity, &[], Duration::from_secs(86_400), Timestamp::now()).unwrap();
    Client::new(url, &issued.credentials().unwrap()).unwrap()
}

impl Site {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let mut site = Self { dir, authority, url: String::new(), stop: None, running: None };
        site.run().await;
        site
    }

    pub async fn run(&mut self) {
        let vault = RunningVault::start(settings(self.dir.path())).await.unwrap();
        self.url = format!("https://{}", vault.local_address());
        let (stop, stopped) = oneshot::channel::<()>();
        self.stop = Some(stop);
        self.running = Some(tokio::spawn(vault.run(async {
            let _ = stopped.await;
        })));
    }

    pub async fn stop(&mut self) {
        drop(self.stop.take());
        self.running.take().unwrap().await.unwrap();
    }

    fn client(&self, identity: &Identity) -> Client {
        client(&self.authority, &self.url, identity)
    }

    pub fn process_server(&self) -> Client {
        self.client(&Identity::ProcessServer(PROCESS_SERVER.into()))
    }

    pub fn operator(&self) -> Client {
        self.client(&Identity::Operator("anna".into()))
    }
}

pub async fn register_over(client: &Client) -> DiskRegistration {
    let body = RegisterDisk { description: description("db1", "/dev/sda") };
    client.put(&process_server_path::disk(SERVER, DiskNumber(0)), &body).await.unwrap()
}

/// The files that belong to a registered disk.
pub fn files_of(registration: &DiskRegistration) -> Files {
    let digit = |place: usize| u8::from_str_radix(&registration.key[place..place + 2], 16).unwrap();
    let key: Vec<u8> = (0..64).step_by(2).map(digit).collect();
    Files { vault: registration.vault, key: DiskKey::new(key.try_into().unwrap()) }
}

pub async fn commit_over(
    client: &Client,
    files: &Files,
    point: &CommitPoint,
) -> Result<CommitReceipt, ClientError> {
    for file in &point.files {
        let request = GrantRequest { server: point.server, file: file.clone() };
        let grant: Grant = client.post(process_server_path::GRANTS, &request).await?;
        if !grant.stored {
            let content = files.content(point.server, file.disk.0, file.epoch.0, file.part.0);
            client.call(Method::PUT, &grant.url).bytes(content).send::<()>().await?;
        }
    }
    client.post(process_server_path::POINTS, point).await
}

/// A point that was taken now.
pub fn point_now(files: &Files, epoch: u64, parts: u32) -> CommitPoint {
    let now = Timestamp::now();
    let mut point = files.commit(SERVER, i64::try_from(epoch).unwrap(), &[(0, epoch, parts)]);
    (point.seal.time, point.sealed_at, point.uploaded_at) = (now, now, now);
    point
}

fn report(capture: CaptureMode) -> ProcessServerReport {
    let now = Timestamp::now();
    let agent = AgentReport {
        time: now,
        server_name: "db1".into(),
        version: "0.1.0".into(),
        kernel: "6.1".into(),
        boot_id: "1".into(),
        capture,
        captured: Some(now),
        disks: Vec::new(),
        cpu_ms: 5,
        memory_bytes: 6,
        events: Vec::new(),
    };
    ProcessServerReport {
        time: now,
        version: "0.1.0".into(),
        spool_total_bytes: 100,
        spool_free_bytes: 50,
        spool_state: SpoolState::Good,
        servers: vec![ServerReport {
            server: SERVER,
            agent: Some(agent),
            heard: Some(now),
            spool: SpoolReport::default(),
        }],
    }
}

#[tokio::test]
async fn from_registration_to_the_list_of_points_and_over_a_restart() {
    let mut site = Site::start().await;
    let (process_server, operator) = (site.process_server(), site.operator());
    let registration = register_over(&process_server).await;
    assert_eq!((registration.key.len(), registration.committed), (64, None));
    let hello: VaultHello =
        process_server.post(process_server_path::REPORT, &report(CaptureMode::Optimistic)).await.unwrap();
    assert_eq!(hello.vault, registration.vault);
    let files = files_of(&registration);
    let point = point_now(&files, 1, 2);
    let receipt = commit_over(&process_server, &files, &point).await.unwrap();
    assert_eq!(receipt.point, point.seal.point);

    let points: Vec<Point> = operator.get("/v1/servers/db1/points").await.unwrap();
    assert_eq!(points.iter().map(|point| point.id).collect::<Vec<_>>(), [point.seal.point]);
    let status: Status = operator.get("/v1/status").await.unwrap();
    assert_eq!(status.servers[0].state, lifeboat_api::Protection::Protected);
    assert_eq!(status.servers[0].rpo.as_ref().unwrap().gated_by, "nothing");
    assert_eq!(status.process_servers[0].spool_free_bytes, 50);
    assert!(status.store_free_bytes.is_some());

    site.stop().await;
    site.run().await;
    let (process_server, operator) = (site.process_server(), site.operator());
    let again = commit_over(&process_server, &files, &point).await.unwrap();
    assert_eq!(again, receipt, "the commit is answered as before");
    let registration = register_over(&process_server).await;
    assert_eq!(registration.committed, Some((point.seal.point, lifeboat_model::Epoch(1))));
    let points: Vec<Point> = operator.get("/v1/servers/db1/points?limit=5").await.unwrap();
    assert_eq!(points.len(), 1);
    site.stop().await;
}

#[tokio::test]
async fn operators_change_policies_and_ask_for_points() {
    let mut site = Site::start().await;
    let (process_server, operator) = (site.process_server(), site.operator());
    register_over(&process_server).await;
    let seen: Assignments = process_server.get(process_server_path::ASSIGNMENTS).await.unwrap();
    let long_poll = format!("{}?seen={}&wait_ms=20000", process_server_path::ASSIGNMENTS, seen.revision);
    let server: Server = operator.get("/v1/servers/db1").await.unwrap();
    let policy = Policy { interval: "9s".parse().unwrap(), ..server.policy };
    let (told, changed) = tokio::join!(
        process_server.get::<Assignments>(&long_poll),
        operator.put::<Server>("/v1/servers/db1/policy", &policy)
    );
    assert_eq!(changed.unwrap().policy, policy);
    assert_eq!(told.unwrap().servers[&SERVER].policy.interval, policy.interval);
    let body = lifeboat_api::TakePoint { kind: PointKind::Filesystem };
    let request: Request = operator.post("/v1/servers/db1/points", &body).await.unwrap();
    let path = format!("/v1/requests/{}?wait_ms=1", request.id);
    let request: Request = operator.get(&path).await.unwrap();
    assert_eq!(request.state, RequestState::Running);
    let error = operator.get::<Vec<lifeboat_api::Event>>("/v1/events?severity=loud").await.unwrap_err();
    assert_eq!(error.code(), Some("invalid"), "{error}");
    let events: Vec<lifeboat_api::Event> = operator.get("/v1/events?server=db1&limit=1").await.unwrap();
    assert_eq!(events[0].code, "server_added");
    operator.delete::<()>("/v1/servers/db1/disks/0").await.unwrap();
    let error = operator.delete::<()>("/v1/servers/db1/disks/0").await.unwrap_err();
    assert_eq!(error.code(), Some("not_found"), "{error}");
    site.stop().await;
}

#[tokio::test]
async fn each_role_does_its_own_and_nothing_else() {
    let mut site = Site::start().await;
    let (process_server, operator) = (site.process_server(), site.operator());
    let files = files_of(&register_over(&process_server).await);
    let refused = process_server.get::<Status>("/v1/status").await.unwrap_err();
    assert_eq!(refused.code(), Some("wrong_role"), "{refused}");
    let refused = commit_over(&operator, &files, &point_now(&files, 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Some("wrong_role"), "{refused}");
    let agent = site.client(&Identity::Agent(SERVER));
    let refused =
        agent.post::<CommitReceipt>(process_server_path::POINTS, &point_now(&files, 1, 0)).await.unwrap_err();
    assert_eq!(refused.code(), Some("wrong_role"), "{refused}");
    let request = GrantRequest { server: SERVER, file: files.file(SERVER, 0, 1, 0) };
    let grant: Grant = process_server.post(process_server_path::GRANTS, &request).await.unwrap();
    let other = site.client(&Identity::ProcessServer("hall-3".into()));
    let foreign = other
        .call(Method::PUT, &grant.url)
        .bytes(files.content(SERVER, 0, 1, 0))
        .send::<()>()
        .await
        .unwrap_err();
    assert_eq!(foreign.code(), Some("grant_refused"), "{foreign}");
    site.stop().await;
}

#[tokio::test]
async fn a_point_with_many_files_is_committed() {
    let mut site = Site::start().await;
    let process_server = site.process_server();
    let files = files_of(&register_over(&process_server).await);
    let whole = point_now(&files, 1, 1);
    let mut many = whole.clone();
    many.seal.disks[0].parts = 20_000;
    let part = |part| FileDescription { part: Part(part), ..whole.files[0].clone() };
    many.files = (0..20_000).map(part).collect();
    let error = process_server.post::<CommitReceipt>(process_server_path::POINTS, &many).await.unwrap_err();
    assert_eq!(error.code(), Some("file_missing"), "more than the usual two mebibytes: {error}");
    commit_over(&process_server, &files, &whole).await.unwrap();
    site.stop().await;
}

#[tokio::test]
async fn a_vault_does_not_serve_with_the_certificate_of_another_role_or_without_its_state() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let issue = |identity: &Identity| {
        let hosts = ["127.0.0.1".to_owned()];
        let issued =
            authority.issue(identity, &hosts, Duration::from_secs(86_400), Timestamp::now()).unwrap();
        issued.write_bundle(&dir.path().join("credentials")).unwrap();
    };
    issue(&Identity::Operator("anna".into()));
    let error = RunningVault::start(settings(dir.path())).await.err().unwrap().to_string();
    assert!(error.contains("lifeboat://operator/anna"), "{error}");
    issue(&Identity::Vault);
    std::fs::create_dir(dir.path().join("store")).unwrap();
    let store = Some(format!("file://{}", dir.path().join("store").display()));
    let settings = Settings { store, ..settings(dir.path()) };
    drop(RunningVault::start(settings.clone()).await.unwrap());
    std::fs::remove_dir_all(dir.path().join("state")).unwrap();
    let error = RunningVault::start(settings).await.err().unwrap().to_string();
    assert!(error.contains("master.key") && error.contains("rebuild-catalog"), "{error}");
}
