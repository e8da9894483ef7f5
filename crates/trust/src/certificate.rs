//! What a certificate says.

use std::net::IpAddr;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::{Identity, Serial, TrustError};

/// What a certificate of Lifeboat says. Reading it proves nothing: that the authority signed it is
/// for TLS to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Who it speaks for.
    pub identity: Identity,
    /// The names and addresses at which it is shown.
    pub hosts: Vec<String>,
    /// Its number.
    pub serial: Serial,
    /// The authority that issued it, as its subject reads.
    pub issuer: String,
    /// From when it holds.
    pub not_before: Timestamp,
    /// Until when it holds.
    pub not_after: Timestamp,
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is no certificate, or carries not exactly one identity.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, TrustError> {
        let unreadable = |why: String| TrustError::unreadable("the certificate", why);
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable(format!("{} bytes follow it", rest.len())));
        }
        let names = parsed.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
        let names = names.map_or_else(Vec::new, |names| names.value.general_names.clone());
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(unreadable("it does not carry exactly one identity (URI)".into()));
        };
        Ok(Self {
            identity: uri.parse()?,
            hosts: names.iter().filter_map(host).collect(),
            serial: Serial::from_certificate(parsed.raw_serial())?,
            issuer: parsed.issuer().to_string(),
            not_before: timestamp(parsed.validity().not_before)?,
            not_after: timestamp(parsed.validity().not_after)?,
        })
    }
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    }
}

pub(crate) fn timestamp(time: ASN1Time) -> Result<Timestamp, TrustError> {
    Timestamp::from_second(time.timestamp()).map_err(|error| TrustError::unreadable("the certificate", error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(CertificateFacts::read(&CertificateDer::from(bytes)).is_err());
        }
    }
}
