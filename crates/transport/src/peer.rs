//! Who calls, by its certificate, and extractors for handlers that only one role may call.

use std::net::SocketAddr;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use jiff::Timestamp;
use lifeboat_model::ServerId;
use lifeboat_trust::{Identity, Serial};

use crate::ApiError;

/// The caller, as its verified certificate says. Every request has it as an extension, unless the
/// listener lets clients show no certificate and this one showed none: then taking it answers 401.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub identity: Identity,
    /// The number of its certificate.
    pub serial: Serial,
    /// From where it called.
    pub address: SocketAddr,
    /// Until when its certificate holds.
    pub not_after: Timestamp,
}

impl Peer {
    /// The refusal of this peer by a handler that needs `needed`, such as `an operator's certificate`.
    #[must_use]
    pub fn refused(&self, needed: &str) -> ApiError {
        let message = format!(
            "this needs {needed}, and the certificate shown is {} ({})",
            self.identity,
            self.identity.role()
        );
        ApiError::forbidden("wrong_role", message)
    }
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            ApiError::new(
                StatusCode::UNAUTHORIZED,
                "certificate_required",
                "this needs a certificate of this site, and none was shown; enrol this machine, or name its certificate",
            )
        })
    }
}

/// The caller is the agent of this server; all others are refused with 403.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentPeer(pub ServerId);

/// The caller is the process server of this name; all others are refused with 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessServerPeer(pub String);

/// The caller is the vault; all others are refused with 403.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaultPeer;

/// The caller is the operator of this name; all others are refused with 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorPeer(pub String);

macro_rules! role {
    ($peer:ty, $needed:literal, $pattern:pat => $value:expr) => {
        impl<S: Sync> FromRequestParts<S> for $peer {
            type Rejection = ApiError;

            async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
                let peer = Peer::from_request_parts(parts, state).await?;
                match peer.identity {
                    $pattern => Ok($value),
                    _ => Err(peer.refused($needed)),
                }
            }
        }
    };
}

role!(AgentPeer, "an agent's certificate (lifeboat://agent/ID)", Identity::Agent(server) => Self(server));
role!(
    ProcessServerPeer,
    "a process server's certificate (lifeboat://process-server/NAME)",
    Identity::ProcessServer(ref name) => Self(name.clone())
);
role!(VaultPeer, "the vault's certificate (lifeboat://vault)", Identity::Vault => Self);
role!(
    OperatorPeer,
    "an operator's certificate (lifeboat://operator/NAME)",
    Identity::Operator(ref name) => Self(name.clone())
);
