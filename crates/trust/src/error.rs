//! What can be wrong with certificates and with the authority, as sentences with a next step.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::{FileError, IdentityError, SerialError};

/// Something is wrong with a certificate, a key or the site's authority.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate of this directory's bundle is missing.
    #[error("{} does not exist; this machine has no certificate there: enrol it, or copy its bundle again", path.display())]
    NoBundle {
        /// The missing file.
        path: PathBuf,
    },
    /// There is an authority in this directory already.
    #[error("{} holds a site's authority already; it is not replaced, as all its certificates would be void", dir.display())]
    AuthorityExists {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no authority in this directory.
    #[error("{} holds no site authority; create one with: lifeboat authority create, or name its directory", dir.display())]
    NoAuthority {
        /// The directory.
        dir: PathBuf,
    },
    /// The site's name cannot stand in a certificate.
    #[error("a site's name is 1 to 64 characters without control characters, not {0:?}")]
    SiteName(String),
    /// An identity is not allowed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A serial number is not one of ours.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// A host is neither a DNS name nor an address.
    #[error(
        "{0:?} is neither a host name nor an IP address; a certificate needs the names by which its listener is called"
    )]
    Host(String),
    /// More hosts than a certificate takes.
    #[error("a certificate names at most {hosts_max} hosts, not {hosts}")]
    Hosts {
        /// How many were asked for.
        hosts: usize,
        /// How many are allowed.
        hosts_max: usize,
    },
    /// The time a certificate shall hold is nothing or beyond reason.
    #[error("a certificate holds between one minute and ten years")]
    Validity,
    /// The authority's own certificate is over.
    #[error("the site's authority expired at {0}; create a new one and enrol every machine again")]
    AuthorityExpired(Timestamp),
    /// A certificate's time is over.
    #[error("the certificate of {who} expired at {expired}; renew it with: lifeboat certificate issue")]
    Expired {
        /// Whose certificate.
        who: String,
        /// When it expired.
        expired: Timestamp,
    },
    /// A certificate's time has not come.
    #[error(
        "the certificate of {who} is valid from {from} on, and the clock here says {now}; is the clock wrong?"
    )]
    NotYetValid {
        /// Whose certificate.
        who: String,
        /// From when it holds.
        from: Timestamp,
        /// What the clock says.
        now: Timestamp,
    },
    /// Certificate and key are of different bundles.
    #[error("the private key does not belong to the certificate of {who}; copy both again from one bundle")]
    KeyMismatch {
        /// Whose certificate.
        who: String,
    },
    /// The certificate was issued by another site's authority.
    #[error(
        "the certificate of {who} was issued by {issuer}, not by this site's authority; enrol this machine at this site"
    )]
    OtherSite {
        /// Whose certificate.
        who: String,
        /// The authority that issued it.
        issuer: String,
    },
    /// A certificate, key or request cannot be read.
    #[error("{what} cannot be read: {why}")]
    Unreadable {
        /// What: `the certificate`, `the private key`.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// A line or file of the authority's own records is damaged.
    #[error("{} is damaged at {place}: {why}; restore it from a backup", path.display())]
    Records {
        /// The file.
        path: PathBuf,
        /// Which line.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// TLS or the cryptography under it refused.
    #[error("cannot {action}: {why}")]
    Crypto {
        /// What was tried.
        action: &'static str,
        /// Why not.
        why: String,
    },
}

impl TrustError {
    pub(crate) fn crypto(action: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |error| Self::Crypto { action, why: error.to_string() }
    }

    pub(crate) fn tls(action: &'static str) -> impl FnOnce(rustls::Error) -> Self {
        move |error| Self::Crypto { action, why: error.to_string() }
    }

    #[allow(clippy::needless_pass_by_value, reason = "for map_err")]
    pub(crate) fn unreadable(what: &'static str, why: impl ToString) -> Self {
        Self::Unreadable { what, why: why.to_string() }
    }
}
