//! The calling end: JSON calls, streamed uploads, streamed downloads.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::Method;
use lifeboat_trust::{Credentials, anonymous_client_config};
use reqwest::Url;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Call, ClientError};

/// How a client waits and how much it takes.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a JSON call may take as a whole, and a download until its first byte. A call that
    /// waits on purpose sets its own with [`Call::timeout`].
    pub call_timeout: Duration,
    /// How long a download may stand still.
    pub stall_timeout: Duration,
    /// Bytes of the largest JSON answer.
    pub json_bytes_max: usize,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(60),
            json_bytes_max: 64 << 20,
        }
    }
}

/// A peer that can be called. Clones share connections and credentials.
///
/// Connections are kept for 30 s, half as long as the listener keeps them, so that a request is
/// not sent into a connection that is just being closed. A proxy from the environment is used,
/// except for loopback addresses; TLS goes through it end to end.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    base: Url,
    peer: String,
    settings: ClientSettings,
    http: RwLock<reqwest::Client>,
}

impl Client {
    /// A client for the peer at `base_url`, such as `https://vault.example.org:443`.
    ///
    /// # Errors
    /// When the address is none or the credentials are unusable. Nothing is called yet.
    pub fn new(base_url: &str, credentials: &Credentials) -> Result<Self, ClientError> {
        Self::with_settings(base_url, credentials, ClientSettings::default())
    }

    /// As [`Client::new`], with other settings.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_settings(
        base_url: &str,
        credentials: &Credentials,
        settings: ClientSettings,
    ) -> Result<Self, ClientError> {
        Self::build(base_url, credentials.client_config()?, settings)
    }

    /// A client that shows no certificate, for enrolment. It still knows the peer by `authority_pem`.
    ///
    /// # Errors
    /// When the address is none or `authority_pem` holds no certificate.
    pub fn anonymous(
        base_url: &str,
        authority_pem: &[u8],
        settings: ClientSettings,
    ) -> Result<Self, ClientError> {
        Self::build(base_url, anonymous_client_config(authority_pem)?, settings)
    }

    fn build(
        base_url: &str,
        tls: rustls::ClientConfig,
        settings: ClientSettings,
    ) -> Result<Self, ClientError> {
        let base = base_of(base_url)?;
        let http = RwLock::new(http_client(&base, tls, &settings)?);
        let host = base.host_str().unwrap_or_default();
        let peer = format!("{host}:{}", base.port_or_known_default().unwrap_or(443));
        Ok(Self { inner: Arc::new(Inner { base, peer, settings, http }) })
    }

    /// Shows `credentials` from now on, in all clones. Calls that run go on with the old ones.
    ///
    /// # Errors
    /// When the credentials are unusable; the old ones stay.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), ClientError> {
        let http = http_client(&self.inner.base, credentials.client_config()?, &self.inner.settings)?;
        *self.inner.http.write().unwrap_or_else(PoisonError::into_inner) = http;
        Ok(())
    }

    /// Host and port of the peer.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.inner.peer
    }

    /// The address that paths are put behind, without a slash at its end.
    #[must_use]
    pub fn base_url(&self) -> &str {
        self.inner.base.as_str().trim_end_matches('/')
    }

    /// GET, with a JSON answer. `path` begins with a slash.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path).send().await
    }

    /// POST of JSON, with a JSON answer; `()` takes an empty one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + ?Sized + Sync),
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path).json(body).send().await
    }

    /// PUT of JSON, with a JSON answer; `()` takes an empty one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + ?Sized + Sync),
    ) -> Result<T, ClientError> {
        self.call(Method::PUT, path).json(body).send().await
    }

    /// DELETE, with a JSON answer; `()` takes an empty one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::DELETE, path).send().await
    }

    /// A call to be filled in: query, headers, body, timeout.
    pub fn call(&self, method: Method, path: &str) -> Call {
        let http = self.inner.http.read().unwrap_or_else(PoisonError::into_inner).clone();
        let url = if path.starts_with('/') {
            format!("{}{path}", self.base_url()).parse::<Url>().map_err(|error| error.to_string())
        } else {
            Err(format!("the path {path:?} does not begin with a slash"))
        };
        let request = url.map(|url| http.request(method, url)).map_err(ClientError::BadRequest);
        Call::new(self.inner.peer.clone(), self.inner.settings.clone(), request)
    }
}

fn base_of(text: &str) -> Result<Url, ClientError> {
    let refused =
        |why: &str| ClientError::Address { url: text.chars().take(200).collect(), why: why.to_owned() };
    let url: Url =
        text.parse().map_err(|error: <Url as std::str::FromStr>::Err| refused(&error.to_string()))?;
    if url.scheme() != "https" {
        return Err(refused("it does not begin with https://"));
    }
    if url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
    {
        return Err(refused("it has more than host, port and path"));
    }
    Ok(url)
}

fn http_client(
    base: &Url,
    tls: rustls::ClientConfig,
    settings: &ClientSettings,
) -> Result<reqwest::Client, ClientError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .connect_timeout(settings.connect_timeout)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .pool_idle_timeout(Duration::from_secs(30))
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(15))
        .tcp_keepalive_interval(Duration::from_secs(15))
        .tcp_keepalive_retries(3)
        .tcp_user_timeout(Duration::from_secs(60));
    let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
    if host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| ClientError::of(host, &error))
}
