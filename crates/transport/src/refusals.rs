//! One line in the log for who is refused and why, however often it tries.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::{AlertDescription, CertificateError, Error};

const QUIET: Duration = Duration::from_secs(60);
const REMEMBERED_MAX: usize = 1024;

/// Remembers what was logged in the last minute.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<(IpAddr, String), Entry>>);

#[derive(Debug)]
struct Entry {
    logged: Instant,
    unlogged: u64,
}

impl Refusals {
    /// How many times the same was kept out of the log since it was last there, if it belongs there now.
    pub(crate) fn worth_logging(&self, address: IpAddr, reason: &str, now: Instant) -> Option<u64> {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = remembered.get_mut(&(address, reason.to_owned())) {
            if now.duration_since(entry.logged) < QUIET {
                entry.unlogged += 1;
                return None;
            }
            let unlogged = std::mem::take(&mut entry.unlogged);
            entry.logged = now;
            return Some(unlogged);
        }
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, entry| now.duration_since(entry.logged) < QUIET);
        }
        // A flood from very many addresses is not worth a line each either.
        if remembered.len() >= REMEMBERED_MAX {
            return None;
        }
        remembered.insert((address, reason.to_owned()), Entry { logged: now, unlogged: 0 });
        Some(0)
    }

    pub(crate) fn log(&self, address: IpAddr, reason: &str) {
        if let Some(unlogged) = self.worth_logging(address, reason, Instant::now()) {
            tracing::warn!(%address, again = unlogged, "refused a connection: {reason}");
        }
    }
}

/// Why a handshake failed; `None` when somebody merely looked whether the port is open.
pub(crate) fn handshake_reason(error: &std::io::Error) -> Option<String> {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        let looked = [std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::ConnectionReset];
        return (!looked.contains(&error.kind())).then(|| error.to_string());
    };
    Some(match tls {
        Error::NoCertificatesPresented => "it showed no certificate".into(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate was not issued by this site's authority".into()
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate is expired".into()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not yet valid; is a clock wrong?".into(),
        Error::InvalidCertificate(CertificateError::Revoked) => "its certificate is revoked".into(),
        Error::InvalidCertificate(other) => format!("its certificate is not accepted: {other}"),
        Error::AlertReceived(AlertDescription::UnknownCA) => {
            "it does not accept our certificate: it belongs to another site".into()
        }
        Error::AlertReceived(alert) => format!("it does not accept our certificate: {alert:?}"),
        Error::InvalidMessage(_) => "it does not speak TLS".into(),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_refusal_is_logged_once_a_minute_with_its_count() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let one = IpAddr::from([10, 0, 0, 1]);
        let other = IpAddr::from([10, 0, 0, 2]);
        assert_eq!(refusals.worth_logging(one, "expired", start), Some(0));
        assert_eq!(refusals.worth_logging(one, "expired", start), None);
        assert_eq!(refusals.worth_logging(one, "expired", start + QUIET / 2), None);
        assert_eq!(refusals.worth_logging(one, "revoked", start), Some(0));
        assert_eq!(refusals.worth_logging(other, "expired", start), Some(0));
        assert_eq!(refusals.worth_logging(one, "expired", start + QUIET), Some(2));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let refusals = Refusals::default();
        let start = Instant::now();
        for number in 0..5000_u32 {
            refusals.worth_logging(IpAddr::from(number.to_be_bytes()), "expired", start);
        }
        assert_eq!(refusals.0.lock().unwrap().len(), REMEMBERED_MAX);
        let later = start + QUIET;
        assert_eq!(refusals.worth_logging(IpAddr::from([9, 9, 9, 9]), "expired", later), Some(0));
        assert_eq!(refusals.0.lock().unwrap().len(), 1);
    }
}
