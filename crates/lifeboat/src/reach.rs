//! How an NBD client on this machine reaches the disk of a volume: through the vault's Unix socket
//! where the vault runs, over TLS from anywhere else.

use std::io::ErrorKind;
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use lifeboat_api::VolumeDisk;
use lifeboat_trust::link_client_names;
use url::Url;

use crate::failure::Failure;
use crate::site::Site;

/// What a vault must be set to, for clients elsewhere.
const SET_LISTEN: &str = "set `listen` in [nbd] of the vault's settings (for example \"0.0.0.0:10809\"), and \
                          restart it";

/// A way to a disk.
pub enum Way {
    /// On the vault's machine.
    Socket { path: PathBuf, export: String },
    /// From elsewhere, with the certificate in `credentials`, under the names that GnuTLS looks for.
    Tls { host: String, port: u16, export: String, credentials: PathBuf },
}

impl Way {
    /// The way from this machine to a disk of the site's vault.
    pub fn to(site: &Site, disk: &VolumeDisk) -> Result<Self, Failure> {
        let local = parse(&disk.nbd_uri)?;
        let export = local.path().trim_start_matches('/').to_owned();
        let socket = local.query_pairs().find(|(name, _)| name == "socket");
        let socket = PathBuf::from(socket.map(|(_, path)| path.into_owned()).unwrap_or_default());
        let connected = if is_here(site) { UnixStream::connect(&socket).map(drop) } else { Err(elsewhere()) };
        if connected.is_ok() {
            return Ok(Self::Socket { path: socket, export });
        }
        let Some(remote) = &disk.nbds_uri else {
            if connected.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
                return Err(Failure::coded(
                    "no_way_to_volume",
                    format!(
                        "the socket of the volumes, {}, is for root alone: use sudo, or {SET_LISTEN}",
                        socket.display()
                    ),
                ));
            }
            return Err(Failure::coded(
                "no_way_to_volume",
                format!(
                    "the volume can be used on the vault's machine alone, through {}: {SET_LISTEN}",
                    socket.display()
                ),
            ));
        };
        let url = parse(remote)?;
        link_client_names(&site.credentials)?;
        Ok(Self::Tls {
            host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(10809),
            export,
            credentials: site.credentials.clone(),
        })
    }

    /// As libnbd takes it. QEMU takes only that of a socket.
    pub fn uri(&self, disk: &VolumeDisk) -> String {
        match (self, &disk.nbds_uri) {
            (Self::Tls { credentials, .. }, Some(uri)) => match Url::parse(uri) {
                Ok(mut url) => {
                    let dir = credentials.display().to_string();
                    url.query_pairs_mut().append_pair("tls-certificates", &dir);
                    // A form writes a space as a plus; a URI for NBD does not know that.
                    url.to_string().replace('+', "%20")
                }
                Err(_) => uri.clone(),
            },
            _ => disk.nbd_uri.clone(),
        }
    }

    /// As QEMU takes it: options before, and those of the image. A connection that breaks is made
    /// again for `reconnect_seconds`.
    pub fn qemu(&self, reconnect_seconds: u64) -> (Vec<String>, String) {
        let (objects, server, export) = match self {
            Self::Socket { path, export } => {
                let path = doubled(&path.display().to_string());
                (Vec::new(), format!("file.server.type=unix,file.server.path={path}"), export)
            }
            Self::Tls { host, port, export, credentials } => {
                let dir = doubled(&credentials.display().to_string());
                let object = format!("tls-creds-x509,id=tls,endpoint=client,verify-peer=on,dir={dir}");
                let server = format!(
                    "file.server.type=inet,file.server.host={},file.server.port={port},file.tls-creds=tls",
                    doubled(host)
                );
                (vec!["--object".to_owned(), object], server, export)
            }
        };
        let image = format!(
            "driver=raw,file.driver=nbd,{server},file.export={},file.reconnect-delay={reconnect_seconds}",
            doubled(export)
        );
        (objects, image)
    }
}

fn elsewhere() -> std::io::Error {
    ErrorKind::NotFound.into()
}

/// Whether the vault's address is one of this machine.
fn is_here(site: &Site) -> bool {
    let Ok(url) = Url::parse(&site.vault) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let Ok(addresses) = (host, 0_u16).to_socket_addrs() else { return false };
    // Only an address of this machine can be bound.
    addresses.into_iter().any(|address| UdpSocket::bind(address).is_ok())
}

fn parse(uri: &str) -> Result<Url, Failure> {
    Url::parse(uri).map_err(|error| {
        Failure::new(format!("the vault answered {uri:?}, which is no address of an NBD export: {error}"))
    })
}

/// A value among QEMU's options, where a comma ends one.
fn doubled(text: &str) -> String {
    text.replace(',', ",,")
}

/// Where libnbd's and QEMU's own clients find a volume's disk from here.
pub fn credentials_hint(credentials: &Path) -> String {
    format!(
        "QEMU takes the certificate apart from the address: --object tls-creds-x509,id=tls,endpoint=client,dir={}",
        credentials.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_libnbd_and_qemu_read_them() {
        let disk = VolumeDisk {
            disk: lifeboat_model::DiskNumber(0),
            nbd_uri: "nbd+unix:///ab-0?socket=/run/a,b/volumes.sock".into(),
            nbds_uri: Some("nbds://[::1]:10809/ab-0".into()),
            bytes: 1,
        };
        let way = Way::Tls {
            host: "::1".into(),
            port: 10809,
            export: "ab-0".into(),
            credentials: "/root/my site,1".into(),
        };
        assert_eq!(way.uri(&disk), "nbds://[::1]:10809/ab-0?tls-certificates=%2Froot%2Fmy%20site%2C1");
        let (objects, image) = way.qemu(5);
        assert!(objects[1].ends_with("dir=/root/my site,,1"), "{objects:?}");
        assert!(image.contains("host=::1,file.server.port=10809,"), "{image}");
        let way = Way::Socket { path: "/run/a,b/volumes.sock".into(), export: "ab-0".into() };
        assert_eq!(way.uri(&disk), disk.nbd_uri);
        assert!(way.qemu(5).1.contains("path=/run/a,,b/volumes.sock,file.export=ab-0"));
    }

    #[test]
    fn a_vault_is_here_when_its_address_is_ours() {
        let site = |vault: &str| Site { vault: vault.to_owned(), credentials: PathBuf::new() };
        assert!(is_here(&site("https://127.0.0.1:443")));
        assert!(is_here(&site("https://localhost:1")));
        assert!(!is_here(&site("https://192.0.2.1:443")));
    }
}
