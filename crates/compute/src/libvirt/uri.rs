//! The address of a libvirt: what it says about where machines run.

use url::Url;

/// The address of a libvirt that runs machines with QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uri {
    /// As the operator wrote it.
    pub shown: String,
    /// What to connect to.
    pub connection: String,
    /// Whether it is on the vault's machine, which then shares files, sockets and loopback with its guests.
    pub is_local: bool,
    /// Whether it is the libvirt of one user, who owns everything, and not of the whole host.
    pub is_session: bool,
}

impl Uri {
    /// Reads an address. The error is a clause that says why no machine can run there.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        const WANTED: &str = "give one such as qemu:///system or qemu+ssh://root@host/system";
        let url = Url::parse(text).map_err(|error| format!("{error}; {WANTED}"))?;
        let host = url.host_str().unwrap_or_default();
        let (driver, transport) = url.scheme().split_once('+').unwrap_or((url.scheme(), ""));
        if driver != "qemu" {
            return Err(format!("its driver is {driver} and not qemu; {WANTED}"));
        }
        let is_session = match url.path() {
            "/system" => false,
            "/session" => true,
            path => return Err(format!("its path is {path:?} and neither /system nor /session; {WANTED}")),
        };
        let is_local = match (transport, host) {
            ("" | "unix", "") => true,
            ("unix", _) => return Err(format!("a Unix socket is on no other host; {WANTED}")),
            ("ssh" | "libssh" | "libssh2" | "tls", "") => {
                return Err(format!("it names no host; {WANTED}"));
            }
            ("" | "ssh" | "libssh" | "libssh2" | "tls", _) => false,
            ("tcp", _) => return Err("it is not encrypted; use qemu+tls:// or qemu+ssh://".into()),
            (other, _) => return Err(format!("the transport {other} is not known; {WANTED}")),
        };
        let mut connection = text.to_owned();
        if transport == "ssh" && !url.query_pairs().any(|(name, _)| name == "no_tty") {
            // Nobody is there to be asked for a password.
            connection += if url.query().is_some() { "&no_tty=1" } else { "?no_tty=1" };
        }
        Ok(Self { shown: text.to_owned(), connection, is_local, is_session })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_where_machines_run() {
        for (text, is_local, is_session) in [
            ("qemu:///system", true, false),
            ("qemu:///session", true, true),
            ("qemu+unix:///system?socket=/run/elsewhere/libvirt-sock", true, false),
            ("qemu+ssh://root@host.example/system", false, false),
            ("qemu+tls://host.example:16514/system", false, false),
            ("qemu://host.example/system", false, false),
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!((uri.is_local, uri.is_session), (is_local, is_session), "{text}");
        }
    }

    #[test]
    fn ssh_never_asks_anybody() {
        let connection = |text| Uri::parse(text).unwrap().connection;
        assert_eq!(connection("qemu+ssh://h/system"), "qemu+ssh://h/system?no_tty=1");
        assert_eq!(connection("qemu+ssh://h/system?keyfile=/k"), "qemu+ssh://h/system?keyfile=/k&no_tty=1");
        assert_eq!(connection("qemu+ssh://h/system?no_tty=0"), "qemu+ssh://h/system?no_tty=0");
        assert_eq!(connection("qemu:///system"), "qemu:///system");
    }

    #[test]
    fn what_runs_no_machines_for_lifeboat_is_refused() {
        for (text, why) in [
            ("", "relative URL"),
            ("/system", "relative URL"),
            ("xen:///system", "driver is xen"),
            ("test:///default", "driver is test"),
            ("qemu:///embed?root=/x", "neither /system nor /session"),
            ("qemu+tcp://host/system", "not encrypted"),
            ("qemu+ssh:///system", "no host"),
            ("qemu+unix://host/system", "no other host"),
            ("qemu+ext://host/system", "transport ext"),
        ] {
            let said = Uri::parse(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
