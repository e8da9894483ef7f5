//! How the roles of Lifeboat talk: HTTP/1.1 over mutual TLS, server and client.
//!
//! [`serve`] runs an axum router behind a listener that knows every caller by its certificate:
//! handlers take [`Peer`], or [`AgentPeer`] and its like where only one role may call. What goes
//! wrong is answered as [`ApiError`], one JSON form everywhere. [`Client`] is the other end; its
//! [`ClientError`] says whether a retry can help and, when TLS refuses, whose certificate is to blame.
//!
//! Bulk data goes over several parallel HTTP/1.1 connections, which measured faster than HTTP/2.

mod api_error;
mod backoff;
mod call;
mod client;
mod client_error;
mod connection;
mod download;
mod peer;
mod refusals;
mod request_id;
mod server;
mod server_tls;
mod stopping;

pub use api_error::{ApiError, ErrorBody, ErrorDetail};
pub use axum::http::{Method, StatusCode};
pub use backoff::Backoff;
pub use call::Call;
pub use client::{Client, ClientSettings};
pub use client_error::{ClientError, TlsTrouble, UnreachableReason};
pub use download::Download;
pub use peer::{AgentPeer, OperatorPeer, Peer, ProcessServerPeer, VaultPeer};
pub use request_id::{RequestId, RequestIds, with_request_ids};
pub use server::{Listener, ListenerSettings, ServeError, serve};
pub use server_tls::ServerTls;
pub use stopping::Stopping;
