//! Who may talk to whom: the site's authority, certificates, private files and TLS settings.
//!
//! Every site has one [`SiteAuthority`]. It issues a certificate to each role; the certificate
//! carries the role's [`Identity`], and every connection of Lifeboat shows one from both ends.
//! [`Credentials`] are what a role holds: its certificate, its private key and the authority that
//! it trusts. They turn into TLS configurations (TLS 1.3 only, no session resumption, so that each
//! connection checks the certificate anew). [`GrantKey`] signs the short tokens that allow one
//! upload.
//!
//! Nothing here opens a socket or reads the clock: the time comes in as a parameter.

mod authority;
mod certificate;
mod credentials;
mod error;
mod grant;
mod identity;
mod issue;
mod ledger;
pub mod private_file;
mod revocation;
mod serial;
mod verifier;

pub use authority::SiteAuthority;
pub use certificate::CertificateFacts;
pub use credentials::{ClientCertificates, Credentials, anonymous_client_config};
pub use error::TrustError;
pub use grant::{CLAIMS_BYTES_MAX, GrantError, GrantKey};
pub use identity::{Identity, IdentityError, NAME_CHARS_MAX};
pub use issue::{IssuedCertificate, KeyRequest, link_client_names};
pub use ledger::{IssuedRecord, RevokedRecord};
pub use private_file::FileError;
pub use revocation::Revocations;
pub use serial::{Serial, SerialError};
