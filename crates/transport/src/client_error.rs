//! What can go wrong with a call, and whether trying again can help.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use axum::http::StatusCode;
use lifeboat_trust::TrustError;
use rustls::{AlertDescription, CertificateError};

/// A call did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address cannot be called.
    #[error(
        "{url:?} is not an address that can be called: {why}; it looks like https://vault.example.org:443"
    )]
    Address {
        /// As given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Our own certificate or key is unusable.
    #[error(transparent)]
    Credentials(#[from] TrustError),
    /// The peer did not answer. A retry can help.
    #[error("{peer} cannot be reached: {reason}")]
    Unreachable {
        /// Host and port.
        peer: String,
        /// Why.
        reason: UnreachableReason,
    },
    /// One side does not accept the other's certificate. A retry does not help.
    #[error("no trust between this program and {peer}: {trouble}")]
    Tls {
        /// Host and port.
        peer: String,
        /// Whose certificate, and what is wrong with it.
        trouble: TlsTrouble,
    },
    /// The peer answered with a refusal.
    #[error("{message}")]
    Api {
        /// The HTTP status.
        status: StatusCode,
        /// The stable word for programs.
        code: String,
        /// The sentence for people.
        message: String,
        /// Finds the request in the peer's log; empty when the peer gave none.
        request_id: String,
    },
    /// The peer's answer is not what it should be.
    #[error("{peer} answered something that cannot be read: {why}; do both have the same version?")]
    BadBody {
        /// Host and port.
        peer: String,
        /// What is wrong.
        why: String,
    },
    /// The peer's answer is larger than the caller takes.
    #[error("{peer} answered with more than {bytes_max} bytes")]
    BodyTooLarge {
        /// Host and port.
        peer: String,
        /// The bound.
        bytes_max: usize,
    },
    /// The source of an upload failed; the peer is not to blame.
    #[error("the data to be sent to {peer} could not be had: {why}")]
    Source {
        /// Host and port.
        peer: String,
        /// Why.
        why: String,
    },
    /// What is to be sent cannot be put into a request.
    #[error("the request cannot be made: {0}")]
    BadRequest(String),
}

/// Why a peer did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnreachableReason {
    /// Nothing listens there.
    Refused,
    /// It did not answer in time.
    Timeout,
    /// The host's name is not known.
    UnknownHost,
    /// No way leads there.
    NoRoute,
    /// The connection ended before the answer was there.
    ConnectionLost,
    /// Something else, in the system's words.
    Other(String),
}

impl fmt::Display for UnreachableReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "nothing listens there; is it running, and is the port right?",
            Self::Timeout => "it did not answer in time; is a firewall in between?",
            Self::UnknownHost => "the name of the host is not known; check the address and the name server",
            Self::NoRoute => "the network has no way there",
            Self::ConnectionLost => "the connection ended before the answer was there",
            Self::Other(why) => why,
        })
    }
}

/// Which certificate is not accepted, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsTrouble {
    /// The peer's certificate is of another authority.
    PeerOfAnotherSite,
    /// The peer's certificate is expired.
    PeerExpired,
    /// The peer's certificate is not yet valid.
    PeerNotYetValid,
    /// The peer's certificate does not name the host that was called.
    PeerName,
    /// The peer says that our certificate is of another authority.
    OwnOfAnotherSite,
    /// The peer says that our certificate is expired, or not yet valid.
    OwnExpired,
    /// The peer says that our certificate is revoked.
    OwnRevoked,
    /// The peer wants a certificate and we showed none.
    OwnMissing,
    /// Something else, in the words of TLS.
    Other(String),
}

impl fmt::Display for TlsTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PeerOfAnotherSite => "its certificate was issued by another site's authority; check the address",
            Self::PeerExpired => "its certificate is expired; renew it there (and check the clock here)",
            Self::PeerNotYetValid => "its certificate is not yet valid; is the clock here or there wrong?",
            Self::PeerName => {
                "its certificate does not name the host by which it was called; issue it one with this host, or call \
                 it by another"
            }
            Self::OwnOfAnotherSite => "it says that our certificate is of another site; enrol this machine there",
            Self::OwnExpired => "it says that our certificate is expired; renew it (or is a clock wrong?)",
            Self::OwnRevoked => "it says that our certificate is revoked; enrol this machine again",
            Self::OwnMissing => "it wants a certificate and we have none; enrol this machine",
            Self::Other(why) => why,
        })
    }
}

impl ClientError {
    /// Whether the same call can succeed later without anybody mending anything here.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Api { status, .. } => {
                let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
                (status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED)
                    || passing.contains(status)
            }
            _ => false,
        }
    }

    /// The stable word of a refusal, if the peer answered with one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Api { code, .. } => Some(code),
            _ => None,
        }
    }

    pub(crate) fn timeout(peer: &str) -> Self {
        Self::Unreachable { peer: peer.to_owned(), reason: UnreachableReason::Timeout }
    }

    /// What an error of reqwest means.
    pub(crate) fn of(peer: &str, error: &reqwest::Error) -> Self {
        let peer = peer.to_owned();
        let causes = causes(error);
        if let Some(source) = causes.iter().find_map(|cause| cause.downcast_ref::<SourceError>()) {
            return Self::Source { peer, why: source.0.to_string() };
        }
        if let Some(tls) = causes.iter().find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
            return match tls_trouble(tls) {
                Some(trouble) => Self::Tls { peer, trouble },
                None => Self::Unreachable { peer, reason: UnreachableReason::ConnectionLost },
            };
        }
        if error.is_builder() {
            return Self::BadRequest(last_words(&causes));
        }
        Self::Unreachable { peer, reason: unreachable_reason(error, &causes) }
    }
}

/// Marks an error that came out of the caller's own stream.
#[derive(Debug)]
pub(crate) struct SourceError(pub(crate) Box<dyn StdError + Send + Sync>);

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for SourceError {}

/// The error and all that it was caused by. What an `io::Error` wraps is not its source by the
/// standard library's count, but it is by ours.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    const CAUSES_MAX: usize = 32;
    let mut found = vec![error];
    while let Some(last) = found.last().copied().filter(|_| found.len() < CAUSES_MAX) {
        let wrapped = last.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match wrapped.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| last.source()) {
            Some(cause) => found.push(cause),
            None => break,
        }
    }
    found
}

fn last_words(causes: &[&(dyn StdError + 'static)]) -> String {
    causes.last().map(ToString::to_string).unwrap_or_default()
}

fn unreachable_reason(error: &reqwest::Error, causes: &[&(dyn StdError + 'static)]) -> UnreachableReason {
    // The innermost: the outer ones only wrap it.
    let kind = causes.iter().rev().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => UnreachableReason::Refused,
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            UnreachableReason::NoRoute
        }
        Some(io::ErrorKind::TimedOut) => UnreachableReason::Timeout,
        _ if error.is_timeout() => UnreachableReason::Timeout,
        // The resolver's error has no type that can be named.
        _ if causes.iter().any(|cause| cause.to_string() == "dns error") => UnreachableReason::UnknownHost,
        Some(
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof,
        ) => UnreachableReason::ConnectionLost,
        _ if !error.is_connect() => UnreachableReason::ConnectionLost,
        _ => UnreachableReason::Other(last_words(causes)),
    }
}

/// `None` when TLS has nothing against the certificates and the connection merely broke.
fn tls_trouble(error: &rustls::Error) -> Option<TlsTrouble> {
    use rustls::Error;
    Some(match error {
        Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsTrouble::PeerOfAnotherSite,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsTrouble::PeerExpired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsTrouble::PeerNotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsTrouble::PeerName
            }
            other => TlsTrouble::Other(format!("its certificate is not accepted: {other}")),
        },
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => TlsTrouble::OwnExpired,
            AlertDescription::CertificateRevoked => TlsTrouble::OwnRevoked,
            AlertDescription::CertificateRequired => TlsTrouble::OwnMissing,
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::DecryptError => TlsTrouble::OwnOfAnotherSite,
            AlertDescription::InternalError | AlertDescription::UserCanceled => return None,
            other => TlsTrouble::Other(format!("it ended the handshake: {other:?}")),
        },
        Error::InvalidMessage(_) => TlsTrouble::Other("it does not speak TLS; check the port".into()),
        other => TlsTrouble::Other(other.to_string()),
    })
}
