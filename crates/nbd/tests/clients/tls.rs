//! TCP with TLS and client certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_nbd::protocol::{ClientOption, OptionReply};
use lifeboat_nbd::{Limits, NbdServer, tls_uri};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::export::SparseDisk;
use crate::support::{fill, run, same, try_run};

struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            // QEMU insists on it.
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A folder with the files that libnbd and QEMU look for.
    fn client_folder(&self, folder: &Path, name: &str, with_certificate: bool) -> PathBuf {
        let folder = folder.join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("ca-cert.pem"), self.certificate.pem()).unwrap();
        if with_certificate {
            let (certificate, key) = self.issue("client", ExtendedKeyUsagePurpose::ClientAuth);
            fs::write(folder.join("client-cert.pem"), certificate.pem()).unwrap();
            fs::write(folder.join("client-key.pem"), key.serialize_pem()).unwrap();
        }
        folder
    }

    fn config_source(&self) -> impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static {
        let config = self.server_config();
        move || Arc::clone(&config)
    }

    fn server_config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let (certificate, key) = self.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Arc::new(config)
    }
}

struct TlsBench {
    server: NbdServer,
    authority: Authority,
    folder: TempDir,
    port: u16,
}

impl TlsBench {
    async fn serving(disk: &Arc<SparseDisk>) -> Self {
        let authority = Authority::new();
        let server = NbdServer::new(Limits::default());
        server.add("disk", Arc::clone(disk) as _).unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let port = server.listen_tcp(address, authority.config_source()).await.unwrap().port();
        Self { server, authority, folder: tempfile::tempdir().unwrap(), port }
    }

    fn uri(&self, certificates: &Path) -> String {
        let certificates = certificates.display();
        format!("{}?tls-certificates={certificates}", tls_uri("disk", "localhost", self.port))
    }
}

const SIZE: usize = 12 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_with_a_certificate_are_served() {
    let disk = SparseDisk::shared(SIZE as u64);
    let content = fill(&disk, SIZE);
    let bench = TlsBench::serving(&disk).await;
    let certificates = bench.authority.client_folder(bench.folder.path(), "client", true);
    let uri = bench.uri(&certificates);
    let shown = run("nbdinfo", &[&uri]).await;
    assert!(shown.contains("newstyle-fixed with TLS, using structured packets"), "{shown}");
    assert!(run("nbdinfo", &["--list", &uri]).await.contains("export=\"disk\""));

    let out = bench.folder.path().join("out.img");
    run("nbdcopy", &["--connections=4", &uri, out.to_str().unwrap()]).await;
    same(&out, &content);
    // All of it back, reversed, so that nothing passes by being there already.
    let reversed: Vec<u8> = content.iter().rev().copied().collect();
    fs::write(&out, &reversed).unwrap();
    run("nbdcopy", &["--connections=4", out.to_str().unwrap(), &uri]).await;
    assert!(disk.get(0, SIZE as u64) == reversed);

    let script = format!("h.connect_uri('{uri}')\nassert len(h.pread(10 << 20, 1)) == 10 << 20");
    run("nbdsh", &["-c", "h.set_uri_allow_local_file(True)", "-c", &script]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_is_served_with_its_own_credentials() {
    let disk = SparseDisk::shared(SIZE as u64);
    let content = fill(&disk, SIZE);
    let bench = TlsBench::serving(&disk).await;
    let certificates = bench.authority.client_folder(bench.folder.path(), "client", true);
    let credentials =
        format!("tls-creds-x509,id=tls0,endpoint=client,verify-peer=on,dir={}", certificates.display());
    let image = format!(
        "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=localhost,file.server.port={},\
         file.export=disk,file.tls-creds=tls0",
        bench.port
    );
    let out = bench.folder.path().join("out.img");
    let out_text = out.to_str().unwrap();
    run("qemu-img", &["convert", "--object", &credentials, "--image-opts", &image, "-O", "raw", out_text])
        .await;
    same(&out, &content);
    let commands = ["-c", "write -P 7 1M 3M", "-c", "flush", "-c", "read -P 7 1M 3M"];
    let mut arguments = vec!["--object", credentials.as_str(), "--image-opts", image.as_str()];
    arguments.extend(commands);
    run("qemu-io", &arguments).await;
    assert!(disk.get(1 << 20, 3 << 20).iter().all(|byte| *byte == 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_not() {
    let bench = TlsBench::serving(&SparseDisk::shared(1 << 20)).await;
    let folder = bench.folder.path();
    let without = bench.authority.client_folder(folder, "without", false);
    let stranger = Authority::new().client_folder(folder, "stranger", true);
    // A stranger that trusts our authority, so that only the server can turn it away.
    fs::write(stranger.join("ca-cert.pem"), bench.authority.certificate.pem()).unwrap();
    for certificates in [without, stranger] {
        let output = try_run("nbdinfo", &["--size", &bench.uri(&certificates)]).await;
        assert!(!output.status.success(), "{} got in", certificates.display());
    }
    // A server of another authority is not believed.
    let elsewhere = Authority::new().client_folder(folder, "elsewhere", true);
    assert!(!try_run("nbdinfo", &["--size", &bench.uri(&elsewhere)]).await.status.success());
    for options in ["", "h.set_request_structured_replies(False);h.set_handshake_flags(0);"] {
        let plain = format!("{options}h.connect_uri('nbd://localhost:{}/disk')", bench.port);
        let output = try_run("nbdsh", &["-c", &plain]).await;
        assert!(!output.status.success(), "served without TLS");
    }
    let certificates = bench.authority.client_folder(folder, "client", true);
    assert_eq!(run("nbdinfo", &["--size", &bench.uri(&certificates)]).await.trim(), "1048576");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_smuggled_in_before_tls_end_the_connection() {
    let bench = TlsBench::serving(&SparseDisk::shared(1 << 20)).await;
    let mut stream = TcpStream::connect(("127.0.0.1", bench.port)).await.unwrap();
    stream.read_exact(&mut [0; 18]).await.unwrap();
    let mut wire = bytes::BytesMut::from(&3u32.to_be_bytes()[..]);
    ClientOption::StartTls.encode(&mut wire);
    ClientOption::List.encode(&mut wire);
    stream.write_all(&wire).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let (_, reply, taken) = OptionReply::decode(&answer).unwrap();
    assert_eq!((reply, taken), (OptionReply::Ack, answer.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_ends_tls_clients_in_good_order() {
    let disk = SparseDisk::shared(1 << 20);
    let bench = TlsBench::serving(&disk).await;
    let certificates = bench.authority.client_folder(bench.folder.path(), "client", true);
    let script = "
h.pwrite(b'ready', 0)
try:
    while True:
        h.pread(4096, 0)
except nbd.Error as error:
    assert error.errno in ('ESHUTDOWN', 'ENOTCONN'), error
";
    let uri = bench.uri(&certificates);
    let connect = format!("h.connect_uri('{uri}')");
    let arguments = ["-c", "h.set_uri_allow_local_file(True)", "-c", &connect, "-c", script];
    let remove = async {
        while disk.calls().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        bench.server.remove("disk").await.unwrap();
        assert_eq!(Arc::strong_count(&disk), 1);
    };
    tokio::join!(run("nbdsh", &arguments), remove);
    bench.server.shutdown().await;
}
