//! The agent in a started copy of its server: it knows that it is no original, and sends nothing.
//!
//! A copy has the disks of the original, so the agent in it has the original's certificate and
//! settings. It must not even connect: the drill of a server would write into the history of that
//! very server. The machine's firmware says what it is; an overlay or a network could be lost or
//! mistaken, the firmware is there before anything else is.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lifeboat_model::{CopyIdentity, is_recovery_copy};
use tokio::signal::unix::{SignalKind, signal};

use crate::notify::notify;

/// Where Linux shows what the firmware says.
const SYS: &str = "/sys";

/// systemd hears so often that the agent is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(30);

/// One sentence when this machine is a started copy of a server; `None` when it is an original.
pub(crate) fn sentence() -> Option<String> {
    sentence_of(Path::new(SYS))
}

fn sentence_of(sys: &Path) -> Option<String> {
    if !is_copy(sys) {
        return None;
    }
    // Which copy it is does not matter for what follows: it may be unknown.
    let tables = tables(sys).unwrap_or_default();
    Some(match CopyIdentity::from_smbios(&tables) {
        Some(CopyIdentity { server, point, purpose, .. }) => format!(
            "this machine is a copy of server {server}, started from recovery point {point} for a {purpose}; its \
             agent sends nothing"
        ),
        None => "this machine is a copy of a server, started at the recovery site; its agent sends nothing"
            .to_owned(),
    })
}

/// Whether the machine that this `sys` shows is a started copy of a server.
pub(crate) fn is_copy(sys: &Path) -> bool {
    let text = |name: &str| fs::read_to_string(sys.join("class/dmi/id").join(name)).unwrap_or_default();
    is_recovery_copy(&text("sys_vendor"), &text("product_name"))
}

/// The SMBIOS tables of the machine that this `sys` shows.
pub(crate) fn tables(sys: &Path) -> std::io::Result<Vec<u8>> {
    fs::read(sys.join("firmware/dmi/tables/DMI"))
}

/// Does nothing until SIGTERM or SIGINT, and tells systemd meanwhile that it is alive.
pub(crate) async fn rest() -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    notify("READY=1");
    let mut alive = tokio::time::interval(ALIVE_EVERY);
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = alive.tick() => notify("WATCHDOG=1"),
        }
    }
    notify("STOPPING=1");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use lifeboat_model::{PointId, Purpose, SMBIOS_MANUFACTURER, SMBIOS_PRODUCT, ServerId, VaultId};

    use super::*;

    fn machine(vendor: &str, product: &str, tables: Option<&[u8]>) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let id = sys.path().join("class/dmi/id");
        fs::create_dir_all(&id).unwrap();
        fs::write(id.join("sys_vendor"), format!("{vendor}\n")).unwrap();
        fs::write(id.join("product_name"), format!("{product}\n")).unwrap();
        if let Some(tables) = tables {
            let place = sys.path().join("firmware/dmi/tables");
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("DMI"), tables).unwrap();
        }
        sys
    }

    #[test]
    fn a_copy_is_known_and_told_as_far_as_it_can_be_read() {
        let identity = CopyIdentity {
            vault: VaultId::new(1),
            server: ServerId::new(0xbeef),
            point: PointId::new(3),
            purpose: Purpose::Drill,
        };
        let tables =
            [&[11, 5, 0, 0, 1][..], identity.to_string().as_bytes(), &[0, 0, 127, 4, 0, 0, 0, 0]].concat();
        let sys = machine(SMBIOS_MANUFACTURER, SMBIOS_PRODUCT, Some(&tables));
        let sentence = sentence_of(sys.path()).unwrap();
        assert!(sentence.contains("000000000000beef") && sentence.contains("for a drill"), "{sentence}");
        let sys = machine(SMBIOS_MANUFACTURER, SMBIOS_PRODUCT, None);
        assert!(sentence_of(sys.path()).unwrap().contains("sends nothing"));
    }

    #[test]
    fn an_original_is_none() {
        assert_eq!(sentence_of(machine("QEMU", SMBIOS_PRODUCT, None).path()), None);
        assert_eq!(sentence_of(machine("Dell Inc.", "PowerEdge R750", None).path()), None);
        assert_eq!(sentence_of(tempfile::tempdir().unwrap().path()), None);
    }
}
