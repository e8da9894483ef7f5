//! Keys, requests for certificates, and the bundle that a role is given.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use zeroize::Zeroizing;

use crate::credentials::{AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, NEXT_KEY_FILE};
use crate::private_file::{create_private_directory, sync_directory_of, write_durably, write_private};
use crate::{Credentials, FileError, Identity, Serial, TrustError};

/// The names under which GnuTLS programs, such as libnbd's and QEMU, look for what a client shows.
const CLIENT_NAMES: [(&str, &str); 3] =
    [("ca-cert.pem", AUTHORITY_FILE), ("client-cert.pem", CERTIFICATE_FILE), ("client-key.pem", KEY_FILE)];

/// Lets a directory with a bundle be named to libnbd (`tls-certificates=DIR`) and QEMU
/// (`tls-creds-x509,dir=DIR`) as it is: links the names that they look for to the bundle's own.
///
/// # Errors
/// When the system refuses.
pub fn link_client_names(dir: &Path) -> Result<(), TrustError> {
    for (name, file) in CLIENT_NAMES {
        let link = dir.join(name);
        match std::os::unix::fs::symlink(file, &link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(FileError::io("write", &link)(error).into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// A new private key and a request for a certificate for it. The key stays where it was made:
/// only [`KeyRequest::request_pem`] travels to the authority.
pub struct KeyRequest {
    key_pem: Zeroizing<String>,
    request_pem: String,
}

impl KeyRequest {
    /// A new key (ECDSA P-256).
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self, TrustError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(TrustError::crypto("make a key"))?;
        let mut params = CertificateParams::default();
        // The authority decides what the certificate says; the request only carries the key.
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(TrustError::crypto("ask for a certificate"))?;
        let request_pem = request.pem().map_err(TrustError::crypto("ask for a certificate"))?;
        Ok(Self { key_pem: Zeroizing::new(key.serialize_pem()), request_pem })
    }

    /// The request, to be sent to the authority.
    #[must_use]
    pub fn request_pem(&self) -> &str {
        &self.request_pem
    }

    /// The bundle of this key and the certificate that the authority made for it.
    ///
    /// # Errors
    /// When the certificate is not for this key or not from this authority.
    pub fn complete(
        self,
        certificate_pem: &str,
        authority_pem: &str,
    ) -> Result<IssuedCertificate, TrustError> {
        let credentials = Credentials::from_pem(
            certificate_pem.as_bytes(),
            self.key_pem.as_bytes(),
            authority_pem.as_bytes(),
        )?;
        Ok(IssuedCertificate {
            serial: credentials.serial(),
            identity: credentials.identity().clone(),
            not_after: credentials.not_after(),
            certificate_pem: certificate_pem.to_owned(),
            key_pem: self.key_pem,
            authority_pem: authority_pem.to_owned(),
        })
    }
}

/// A certificate with its private key and the authority that issued it.
#[derive(Clone)]
pub struct IssuedCertificate {
    /// Its number.
    pub serial: Serial,
    /// Who it speaks for.
    pub identity: Identity,
    /// Until when it holds.
    pub not_after: Timestamp,
    /// The certificate.
    pub certificate_pem: String,
    /// The private key. Secret.
    pub key_pem: Zeroizing<String>,
    /// The authority's certificate.
    pub authority_pem: String,
}

impl std::fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IssuedCertificate({} {} until {})", self.identity, self.serial, self.not_after)
    }
}

impl IssuedCertificate {
    /// Writes `certificate.pem`, `key.pem` (0600) and `authority.pem` into a directory that only
    /// its owner may enter. Replaces an older bundle, and can be killed at any moment: then
    /// [`Credentials::load`] reads either bundle whole. An operator's directory can also be named to
    /// NBD clients, see [`link_client_names`].
    ///
    /// # Errors
    /// When the directory is open to others, or the system refuses.
    pub fn write_bundle(&self, dir: &Path) -> Result<(), TrustError> {
        create_private_directory(dir)?;
        write_durably(&dir.join(AUTHORITY_FILE), self.authority_pem.as_bytes())?;
        // The certificate's rename is the moment of change: until then the old key is in its
        // place, and from then on the new key is found under either name.
        let next = dir.join(NEXT_KEY_FILE);
        write_private(&next, self.key_pem.as_bytes())?;
        write_durably(&dir.join(CERTIFICATE_FILE), self.certificate_pem.as_bytes())?;
        let key = dir.join(KEY_FILE);
        fs::rename(&next, &key).map_err(FileError::io("write", &key))?;
        if matches!(self.identity, Identity::Operator(_)) {
            link_client_names(dir)?;
        }
        Ok(sync_directory_of(&key)?)
    }

    /// As credentials, without going through files.
    ///
    /// # Errors
    /// When the parts do not belong together.
    pub fn credentials(&self) -> Result<Credentials, TrustError> {
        Credentials::from_pem(
            self.certificate_pem.as_bytes(),
            self.key_pem.as_bytes(),
            self.authority_pem.as_bytes(),
        )
    }
}
