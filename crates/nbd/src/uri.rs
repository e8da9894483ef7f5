//! Addresses of exports, as NBD clients take them.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `nbd+unix:///NAME?socket=PATH`. `socket` should be absolute.
pub fn unix_uri(name: &str, socket: &Path) -> String {
    let socket = escaped(socket.as_os_str().as_bytes(), b"/");
    format!("nbd+unix:///{}?socket={socket}", escaped(name.as_bytes(), b""))
}

/// `nbds://HOST:PORT/NAME`. `host` is a name or an address; for TLS it must be what the server's
/// certificate says.
pub fn tls_uri(name: &str, host: &str, port: u16) -> String {
    let name = escaped(name.as_bytes(), b"");
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("nbds://[{host}]:{port}/{name}");
    }
    format!("nbds://{}:{port}/{name}", escaped(host.as_bytes(), b""))
}

/// Everything but RFC 3986's unreserved characters and `kept` as `%XX`.
fn escaped(bytes: &[u8], kept: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || kept.contains(byte) {
            out.push(char::from(*byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_escaped() {
        let uri = unix_uri("a b/ü?", Path::new("/run/life boat/nbd&1.sock"));
        assert_eq!(uri, "nbd+unix:///a%20b%2F%C3%BC%3F?socket=/run/life%20boat/nbd%261.sock");
    }

    #[test]
    fn hosts_are_bracketed_if_need_be() {
        assert_eq!(tls_uri("disk", "::1", 10809), "nbds://[::1]:10809/disk");
        assert_eq!(tls_uri("disk", "vault.example", 1), "nbds://vault.example:1/disk");
    }
}
