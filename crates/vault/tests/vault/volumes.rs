//! Volumes and digests over the vault's connections, read by real NBD clients.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use lifeboat_api::{OpenVolume, OpenedVolume, Volume};
use lifeboat_model::DiskNumber;
use lifeboat_transport::{Client, Method};
use lifeboat_trust::{Identity, IssuedCertificate};
use lifeboat_vault::RunningVault;
use lifeboat_wire::agent::DigestsOf;
use lifeboat_wire::process_server::DigestRequest;
use lifeboat_wire::process_server_path;

use crate::http::*;
use crate::support::*;

const DISK: DiskNumber = DiskNumber(0);

/// A site with a point of one file.
async fn with_point() -> Site {
    let site = Site::start().await;
    let process_server = site.process_server();
    let files = files_of(&register_over(&process_server).await);
    commit_over(&process_server, &files, &point_now(&files, 1, 1)).await.unwrap();
    site
}

async fn open(site: &Site) -> OpenedVolume {
    let request = OpenVolume { read_only: true, ..OpenVolume::default() };
    site.operator().post("/v1/servers/db1/volumes", &request).await.unwrap()
}

fn stored_file(site: &Site) -> PathBuf {
    let store = site.dir.path().join("state/store");
    let names = tree(&store);
    store.join(names.iter().find(|name| name.ends_with(".hrl")).unwrap())
}

fn hidden(path: &Path) -> PathBuf {
    path.with_extension("hidden")
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.env("PATH", "/usr/bin:/bin").args(arguments).stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("{program} cannot be run ({error}): install libnbd-bin"))
}

fn succeeds(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A folder with the files that libnbd and QEMU look for.
fn client_folder(site: &Site, name: &str, identity: Option<&Identity>) -> PathBuf {
    let folder = site.dir.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("ca-cert.pem"), site.authority.certificate_pem()).unwrap();
    if let Some(identity) = identity {
        let hour = Duration::from_secs(3600);
        let issued: IssuedCertificate = site.authority.issue(identity, &[], hour, Timestamp::now()).unwrap();
        std::fs::write(folder.join("client-cert.pem"), &issued.certificate_pem).unwrap();
        std::fs::write(folder.join("client-key.pem"), issued.key_pem.as_bytes()).unwrap();
    }
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_read_a_volume_over_tls_and_nobody_else() {
    let mut site = with_point().await;
    let opened = open(&site).await;
    let address = opened.disks[0].nbds_uri.clone().unwrap();
    let uri = |folder: &Path| format!("{address}?tls-certificates={}", folder.display());

    let anna = client_folder(&site, "anna", Some(&Identity::Operator("anna".into())));
    let shown = succeeds("nbdinfo", &[&uri(&anna)]);
    assert!(shown.contains("with TLS") && shown.contains("is_read_only: true"), "{shown}");
    let copy = site.dir.path().join("copy.img");
    succeeds("nbdcopy", &[&uri(&anna), copy.to_str().unwrap()]);
    let first = std::fs::read(&copy).unwrap()[..4096].to_vec();
    assert!(first.starts_with(format!("server {SERVER}, disk 0, epoch 1, part 0").as_bytes()));
    let port = address.rsplit(':').next().unwrap().split('/').next().unwrap();
    let name = address.rsplit('/').next().unwrap();
    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,verify-peer=on,dir={}", anna.display());
    let image = format!(
        "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,\
         file.server.port={port},file.export={name},file.tls-creds=tls0"
    );
    let shown = succeeds("qemu-img", &["info", "--object", &credentials, "--image-opts", &image]);
    assert!(shown.contains("1 GiB"), "{shown}");

    let others = [
        ("nobody", None),
        ("agent", Some(Identity::Agent(SERVER))),
        ("hall-2", Some(Identity::ProcessServer(PROCESS_SERVER.into()))),
        ("vault", Some(Identity::Vault)),
    ];
    for (name, identity) in others {
        let folder = client_folder(&site, name, identity.as_ref());
        let output = run("nbdinfo", &["--size", &uri(&folder)]);
        assert!(!output.status.success(), "{name} reads the volume");
    }
    let plain = address.replace("nbds://", "nbd://");
    assert!(!run("nbdinfo", &["--size", &plain]).status.success(), "served without TLS");
    assert_eq!(succeeds("nbdinfo", &["--size", &uri(&anna)]).trim(), (1_u64 << 30).to_string());
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_whose_file_was_away_for_a_moment_is_served_again() {
    let mut site = with_point().await;
    let uri = open(&site).await.disks[0].nbd_uri.clone();
    site.stop().await;
    let file = stored_file(&site);
    std::fs::rename(&file, hidden(&file)).unwrap();
    site.run().await;
    let operator = site.operator();
    let listed = async || operator.get::<Vec<Volume>>("/v1/volumes").await.unwrap().remove(0);
    let trouble = listed().await.trouble.unwrap();
    assert!(trouble.contains("is missing in the store"), "{trouble}");
    assert!(!run("nbdinfo", &["--size", &uri]).status.success());
    std::fs::rename(hidden(&file), &file).unwrap();
    // Nobody asks the vault for anything: the client only has the address.
    let began = Instant::now();
    while !run("nbdinfo", &["--size", &uri]).status.success() {
        assert!(began.elapsed() < Duration::from_secs(30), "still not served");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let volume = listed().await;
    assert_eq!((volume.trouble, volume.disks.len()), (None, 1));
    site.stop().await;
}

async fn digests(client: &Client) -> Result<Bytes, lifeboat_transport::ClientError> {
    let of = DigestsOf::Chunks { first: 0, count: 4 };
    let request = DigestRequest { point: None, open_files: Vec::new(), of };
    client
        .call(Method::POST, &process_server_path::digests(SERVER, DISK))
        .json(&request)
        .send_for_bytes(1 << 20)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_whose_digests_are_asked_for_again_is_not_opened_anew() {
    let mut site = with_point().await;
    let process_server = site.process_server();
    let first = digests(&process_server).await.unwrap();
    assert_eq!(first.len(), 4 * 16);
    // Only who opens the disk reads the ends of its files.
    let file = stored_file(&site);
    let whole = std::fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&file, damaged).unwrap();
    assert_eq!(digests(&process_server).await.unwrap(), first);
    std::fs::write(&file, whole).unwrap();
    // What is new is seen.
    let files = files_of(&register_over(&process_server).await);
    commit_over(&process_server, &files, &point_now(&files, 2, 1)).await.unwrap();
    assert!(digests(&process_server).await.unwrap() != first);
    site.stop().await;
}

#[tokio::test]
async fn a_second_vault_on_the_same_socket_is_told_what_to_set() {
    let mut site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    drop(authority(dir.path()));
    let mut second = settings(dir.path());
    second.nbd.socket_directory = site.dir.path().join("nbd");
    let error = RunningVault::start(second.clone()).await.err().unwrap().to_string();
    assert!(error.contains("volumes.sock is in use by another process"), "{error}");
    assert!(error.contains("`socket_directory` in [nbd]"), "{error}");
    second.nbd.socket_directory = dir.path().join("long".repeat(30));
    let error = RunningVault::start(second.clone()).await.err().unwrap().to_string();
    assert!(error.contains("at most 107") && error.contains("`socket_directory` in [nbd]"), "{error}");
    // The first one is not disturbed. It takes away what it made; what it leaves when it is killed
    // is replaced.
    assert!(site.dir.path().join("nbd/volumes.sock").exists());
    site.stop().await;
    assert!(!site.dir.path().join("nbd").exists());
    let stale = site.dir.path().join("nbd/volumes.sock");
    std::fs::create_dir(stale.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    second.nbd.socket_directory = site.dir.path().join("nbd");
    RunningVault::start(second).await.map(drop).unwrap();
}
