//! What a role holds to prove who it is and to know its peers.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::private_file::{read_private, read_public};
use crate::verifier::SiteClientVerifier;
use crate::{CertificateFacts, FileError, Identity, Revocations, Serial, TrustError};

pub(crate) const CERTIFICATE_FILE: &str = "certificate.pem";
pub(crate) const KEY_FILE: &str = "key.pem";
pub(crate) const NEXT_KEY_FILE: &str = "next-key.pem";
pub(crate) const AUTHORITY_FILE: &str = "authority.pem";

/// Certificates in the longest chain or list of authorities.
const CERTIFICATES_MAX: usize = 8;

/// Whether a server insists on a client's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// TLS refuses clients that show none.
    Required,
    /// A client may show none; one that is shown must be good. For enrolment and the console.
    Optional,
    /// TLS refuses everybody but operators. For protocols in which nobody asks again, such as NBD.
    OperatorsOnly,
}

/// A certificate, its private key, and the authority of the site.
#[derive(Clone)]
pub struct Credentials {
    facts: CertificateFacts,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    authority_pem: Arc<[u8]>,
}

impl Credentials {
    /// Reads `certificate.pem`, `key.pem` and `authority.pem` from a directory and checks that they
    /// belong together and hold at `now`.
    ///
    /// # Errors
    /// Says in a sentence which file is missing, readable by others or damaged, or that the
    /// certificate is expired, not yet valid, not for this key, or of another site.
    pub fn load(dir: &Path, now: Timestamp) -> Result<Self, TrustError> {
        let first = match Self::load_once(dir) {
            // The bundle was replaced between our reads of it; the second look sees the new one.
            Err(TrustError::KeyMismatch { .. }) => Self::load_once(dir),
            other => other,
        };
        let credentials = first?;
        credentials.check_time(now)?;
        Ok(credentials)
    }

    fn load_once(dir: &Path) -> Result<Self, TrustError> {
        let certificate = read_public(&dir.join(CERTIFICATE_FILE)).map_err(no_bundle)?;
        let authority = read_public(&dir.join(AUTHORITY_FILE)).map_err(no_bundle)?;
        let with_key = |name: &str| {
            let key = read_private(&dir.join(name)).map_err(no_bundle)?;
            Self::from_pem(&certificate, &key, &authority)
        };
        match with_key(KEY_FILE) {
            // A writer of the bundle was killed after the certificate and before the key.
            Err(error @ (TrustError::KeyMismatch { .. } | TrustError::NoBundle { .. })) => {
                with_key(NEXT_KEY_FILE).map_err(|_| error)
            }
            other => other,
        }
    }

    /// Takes the parts from PEM text and checks that they belong together, whatever the time.
    ///
    /// # Errors
    /// When a part cannot be read, the key is not the certificate's, or the authority did not issue it.
    pub fn from_pem(certificate: &[u8], key: &[u8], authority: &[u8]) -> Result<Self, TrustError> {
        let chain = certificates("the certificate", certificate)?;
        let key_der = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| TrustError::unreadable("the private key", error))?;
        let roots = roots_of(authority)?;
        let facts = CertificateFacts::read(&chain[0])?;
        let key = CertifiedKey::from_der(chain, key_der, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TrustError::KeyMismatch { who: facts.identity.to_string() },
            other => TrustError::unreadable("the private key", other),
        })?;
        check_issuer(&facts, &key.cert, &roots)?;
        Ok(Self { facts, key: Arc::new(key), roots, authority_pem: authority.into() })
    }

    /// Checks that the certificate holds at `now`.
    ///
    /// # Errors
    /// When it is expired or not yet valid.
    pub fn check_time(&self, now: Timestamp) -> Result<(), TrustError> {
        let who = || self.facts.identity.to_string();
        if now < self.facts.not_before {
            return Err(TrustError::NotYetValid { who: who(), from: self.facts.not_before, now });
        }
        if now > self.facts.not_after {
            return Err(TrustError::Expired { who: who(), expired: self.facts.not_after });
        }
        Ok(())
    }

    /// Who the certificate speaks for.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.facts.identity
    }

    /// The names and addresses at which the certificate is shown.
    #[must_use]
    pub fn hosts(&self) -> &[String] {
        &self.facts.hosts
    }

    /// The certificate's number.
    #[must_use]
    pub fn serial(&self) -> Serial {
        self.facts.serial
    }

    /// From when the certificate holds.
    #[must_use]
    pub fn not_before(&self) -> Timestamp {
        self.facts.not_before
    }

    /// Until when the certificate holds.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.facts.not_after
    }

    /// One sentence when the certificate ends soon: within 30 days, or within the last half of its time
    /// where that is less.
    #[must_use]
    pub fn ends_soon(&self, now: Timestamp) -> Option<String> {
        let CertificateFacts { not_before, not_after, identity, .. } = &self.facts;
        let soon = (not_after.duration_since(*not_before) / 2).min(SignedDuration::from_hours(30 * 24));
        let left = not_after.duration_since(now);
        (left <= soon).then(|| {
            format!("The certificate of {identity} ends at {not_after:.0}; nothing can be sent or asked with it then.")
        })
    }

    /// The certificate of the authority that is trusted.
    #[must_use]
    pub fn authority_pem(&self) -> &[u8] {
        &self.authority_pem
    }

    /// TLS for a listener: shows this certificate, and accepts clients whose certificate this
    /// site's authority issued and `revocations` does not hold.
    ///
    /// # Errors
    /// When rustls refuses the parts.
    pub fn server_config(
        &self,
        clients: ClientCertificates,
        revocations: &Revocations,
    ) -> Result<ServerConfig, TrustError> {
        let builder = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider());
        let builder = match clients {
            ClientCertificates::Required | ClientCertificates::OperatorsOnly => builder,
            ClientCertificates::Optional => builder.allow_unauthenticated(),
        };
        let inner = builder.build().map_err(verifier_error)?;
        let verifier = Arc::new(SiteClientVerifier {
            inner,
            revocations: revocations.clone(),
            operators_only: clients == ClientCertificates::OperatorsOnly,
        });
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TrustError::tls("set up TLS"))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(self.key.clone())));
        config.alpn_protocols = alpn();
        // A resumed session would not look at the client's certificate again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// TLS for a client: shows this certificate, and accepts servers whose certificate this site's
    /// authority issued for the host that is called.
    ///
    /// # Errors
    /// When rustls refuses the parts.
    pub fn client_config(&self) -> Result<ClientConfig, TrustError> {
        let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(self.key.clone()));
        Ok(finish_client(client_builder(self.roots.clone())?.with_client_cert_resolver(resolver)))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} {} until {})", self.facts.identity, self.facts.serial, self.facts.not_after)
    }
}

/// TLS for a client that has no certificate yet: it knows its server by the authority, and shows nothing.
///
/// # Errors
/// When `authority_pem` holds no certificate.
pub fn anonymous_client_config(authority_pem: &[u8]) -> Result<ClientConfig, TrustError> {
    Ok(finish_client(client_builder(roots_of(authority_pem)?)?.with_no_client_auth()))
}

fn client_builder(
    roots: Arc<RootCertStore>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TrustError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::tls("set up TLS"))?
        .with_root_certificates(roots))
}

fn finish_client(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = alpn();
    config.resumption = rustls::client::Resumption::disabled();
    config
}

fn check_issuer(
    facts: &CertificateFacts,
    chain: &[CertificateDer<'_>],
    roots: &Arc<RootCertStore>,
) -> Result<(), TrustError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(verifier_error)?;
    // Judged at a time when the certificate holds: whether it holds now is another question.
    let seconds = u64::try_from(facts.not_after.as_second()).unwrap_or(0);
    let then = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    match verifier.verify_client_cert(&chain[0], &chain[1..], then) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => Err(TrustError::OtherSite { who: facts.identity.to_string(), issuer: facts.issuer.clone() }),
        Err(error) => Err(TrustError::unreadable("the certificate", error)),
    }
}

fn roots_of(authority_pem: &[u8]) -> Result<Arc<RootCertStore>, TrustError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("the authority's certificate", authority_pem)? {
        roots
            .add(certificate)
            .map_err(|error| TrustError::unreadable("the authority's certificate", error))?;
    }
    Ok(Arc::new(roots))
}

/// At least one certificate, and not more than can be meant.
fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(CERTIFICATES_MAX + 1).collect();
    let found = found.map_err(|error| TrustError::unreadable(what, error))?;
    match found.len() {
        0 => Err(TrustError::unreadable(what, "it holds no certificate in PEM form")),
        1..=CERTIFICATES_MAX => Ok(found),
        _ => Err(TrustError::unreadable(what, "it holds too many certificates")),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn alpn() -> Vec<Vec<u8>> {
    vec![b"http/1.1".to_vec()]
}

fn no_bundle(error: FileError) -> TrustError {
    match error {
        FileError::Missing { path } => TrustError::NoBundle { path },
        other => other.into(),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn verifier_error(error: rustls::server::VerifierBuilderError) -> TrustError {
    TrustError::Crypto { action: "set up the check of client certificates", why: error.to_string() }
}
