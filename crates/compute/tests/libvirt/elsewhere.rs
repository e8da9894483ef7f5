//! A libvirt that is not on the vault's machine: reached over TLS or SSH, and its guests' disks over TLS. That it
//! is here all the same, nothing of what is used tells.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifeboat_compute::{
    AccelerationChoice, Attachment, DiskAddress, DiskFormat, Forward, HydrationTarget, LibvirtProvider,
    LibvirtSettings, MacAddress, MachineStatus, NbdOverTls, Nic, NicModel, Provider,
};
use lifeboat_model::{DiskNumber, VaultId};
use lifeboat_nbd::{Limits, NbdServer};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::free_port::free_port;
use crate::guests::READS;
use crate::machine::{DISK_BYTES, spec, wait_for};
use crate::serving::{Served, address};

/// An authority, and a certificate for localhost that is good at both ends.
struct Certificates {
    authority: String,
    authority_der: CertificateDer<'static>,
    certificate: String,
    certificate_der: CertificateDer<'static>,
    key: KeyPair,
}

impl Certificates {
    fn new() -> Self {
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(params, authority_key);
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Self {
            authority: authority.pem(),
            authority_der: authority.der().clone(),
            certificate: certificate.pem(),
            certificate_der: certificate.der().clone(),
            key,
        }
    }

    /// Writes them under the names that libvirt and QEMU look for.
    fn write(&self, place: &Path) {
        fs::create_dir_all(place).unwrap();
        for name in ["cacert.pem", "ca-cert.pem"] {
            fs::write(place.join(name), &self.authority).unwrap();
        }
        for name in ["servercert.pem", "clientcert.pem", "client-cert.pem"] {
            fs::write(place.join(name), &self.certificate).unwrap();
        }
        for name in ["serverkey.pem", "clientkey.pem", "client-key.pem"] {
            fs::write(place.join(name), self.key.serialize_pem()).unwrap();
        }
    }

    /// A server that takes only clients with a certificate.
    fn server(&self) -> Arc<ServerConfig> {
        let crypto = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.authority_der.clone()).unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto.clone()).build().unwrap();
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(crypto)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![self.certificate_der.clone()], key);
        Arc::new(config.unwrap())
    }
}

/// A place for a host, with certificates in the directory that is answered beside it.
fn host() -> (TempDir, PathBuf, Certificates) {
    let place = tempfile::Builder::new().prefix("lv").tempdir().unwrap();
    let (pki, certificates) = (place.path().join("pki"), Certificates::new());
    certificates.write(&pki);
    (place, pki, certificates)
}

#[tokio::test]
async fn a_host_elsewhere_runs_machines_from_disks_over_tls() {
    let (place, pki, certificates) = host();
    let port = free_port();
    let shown = pki.display();
    let daemon = Daemon::with(
        &format!(
            "listen_tls = 1\nlisten_addr = \"127.0.0.1\"\ntls_port = \"{port}\"\nauth_tls = \"none\"\n\
             ca_file = \"{shown}/cacert.pem\"\ncert_file = \"{shown}/servercert.pem\"\n\
             key_file = \"{shown}/serverkey.pem\"\n"
        ),
        &format!("nbd_tls_x509_cert_dir = \"{shown}\"\n"),
        "--listen",
    );
    let uri = format!("qemu+tls://localhost:{port}/system?pkipath={shown}");
    runs_machines(place.path(), &certificates, &daemon, &uri).await;
}

#[tokio::test]
async fn a_host_elsewhere_is_reached_over_ssh() {
    let (place, pki, certificates) = host();
    let daemon = Daemon::with("", &format!("nbd_tls_x509_cert_dir = \"{}\"\n", pki.display()), "");
    let (mut sshd, port, client) = ssh_server(&daemon, place.path());
    let uri = format!("qemu+ssh://root@127.0.0.1:{port}/system?command={}", client.display());
    runs_machines(place.path(), &certificates, &daemon, &uri).await;
    sshd.kill().unwrap();
    sshd.wait().unwrap();

    // The host is away: that is said, and by whom.
    let settings = LibvirtSettings::new(place.path().join("state"), &uri, VaultId::new(77));
    let provider = LibvirtProvider::open(settings).await.unwrap();
    let error = provider.start(&spec(1, address(place.path()))).await.unwrap_err().to_string();
    assert!(error.contains("Connection refused") && error.contains("127.0.0.1"), "{error}");
}

/// An SSH server on the daemon's host, its port, and a program that logs in to it as an administrator's `ssh` does
/// with what is in his home directory.
fn ssh_server(daemon: &Daemon, place: &Path) -> (Child, u16, PathBuf) {
    let path = |name: &str| place.join(name).display().to_string();
    for name in ["host-key", "key"] {
        let keygen =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path(name)]).status();
        assert!(keygen.unwrap().success());
    }
    let port = free_port();
    let settings = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
         StrictModes no\nPermitRootLogin prohibit-password\n",
        path("host-key"),
        path("key.pub")
    );
    fs::write(path("sshd.conf"), settings).unwrap();
    // Debian's makes it when it starts as a service.
    fs::create_dir_all("/run/sshd").unwrap();
    let log = fs::File::create(path("sshd.log")).unwrap();
    let mut sshd = daemon.on_host("/usr/sbin/sshd");
    let sshd = sshd.args(["-D", "-e", "-f", &path("sshd.conf")]).stderr(log).spawn().unwrap();

    let host_key = fs::read_to_string(path("host-key.pub")).unwrap();
    fs::write(path("known_hosts"), format!("[127.0.0.1]:{port} {host_key}")).unwrap();
    let client = place.join("ssh");
    let script = format!(
        "#!/bin/sh\nexec ssh -F none -i '{}' -o UserKnownHostsFile='{}' -o StrictHostKeyChecking=yes \"$@\"\n",
        path("key"),
        path("known_hosts")
    );
    fs::write(&client, script).unwrap();
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let log = fs::read_to_string(path("sshd.log")).unwrap();
        assert!(began.elapsed() < Duration::from_secs(60), "no SSH server: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
    (sshd, port, client)
}

/// Starts a machine there from a disk over TLS, and removes it; says what such a host has not.
async fn runs_machines(place: &Path, certificates: &Certificates, daemon: &Daemon, uri: &str) {
    let image = place.join("image");
    crate::guests::disk(&image, READS, DISK_BYTES, "from afar\r\n");
    let server = NbdServer::new(Limits::default());
    let file = fs::File::options().read(true).write(true).open(&image).unwrap();
    server.add("disk", Arc::new(Served(file))).unwrap();
    let tls = certificates.server();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let bound = server.listen_tcp(any, move || Arc::clone(&tls)).await.unwrap();

    let settings = LibvirtSettings {
        acceleration: AccelerationChoice::Tcg,
        ..LibvirtSettings::new(place.join("state"), uri, VaultId::new(77))
    };
    let mut spec = spec(1, address(place));
    let forwards = vec![Forward { host_port: 0, guest_port: 22 }];
    let attachment = Attachment::Isolated { subnet: None, forwards };
    spec.nics = vec![Nic { mac: MacAddress::local(1), model: NicModel::Virtio, attachment }];
    let provider = LibvirtProvider::open(settings.clone()).await.unwrap();
    let error = provider.start(&spec).await.unwrap_err();
    assert!(error.to_string().contains("over TLS only, and the vault offers none: set listen"), "{error}");
    drop(provider);

    let nbd = Some(NbdOverTls { host: "localhost".into(), port: bound.port() });
    let provider = LibvirtProvider::open(LibvirtSettings { nbd, ..settings }).await.unwrap();
    provider.start(&spec).await.unwrap();
    let heard = wait_for(async || {
        Some(provider.console(spec.id, 0).await.unwrap()).filter(|part| part.text.contains("from afar"))
    });
    heard.await.expect("the guest does not read its disk");
    assert!(!provider.screenshot(spec.id).await.unwrap().is_empty());
    let status = provider.status(spec.id).await.unwrap();
    assert!(matches!(&status, MachineStatus::Running { forwards, .. } if forwards.is_empty()), "{status:?}");

    // What a host elsewhere has not is said.
    let error = provider.reach(spec.id, 22, Duration::from_secs(1)).await.unwrap_err();
    assert!(error.to_string().contains("use a probe of the console"), "{error}");
    let target =
        HydrationTarget { path: place.join("copy"), format: DiskFormat::Raw, bytes_per_second: None };
    let error = provider.hydrate(spec.id, DiskNumber(0), &target).await.unwrap_err();
    assert!(
        error.to_string().contains("is another host, and disks are copied to files of the vault"),
        "{error}"
    );
    provider.remove(spec.id).await.unwrap();
    let (_, left) = daemon.virsh(&["list", "--all", "--name"]);
    assert_eq!(left.trim(), "");
    assert!(!daemon.kept_for(&VaultId::new(77).to_string()).exists());

    spec.disks[0].source = DiskAddress::File { path: image, format: DiskFormat::Raw };
    let error = provider.start(&spec).await.unwrap_err();
    assert!(error.to_string().contains(&format!("is on the vault's machine, and {uri}")), "{error}");
}
