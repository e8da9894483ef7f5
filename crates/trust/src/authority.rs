//! The site's authority: the one key that makes all others known.
//!
//! Its directory (mode 0700) holds `authority-key.pem` (0600, the private key and the certificate
//! in one file, so that they exist together or not at all), `authority.pem` (the certificate alone,
//! a copy for others), `issued.jsonl` and `revoked.json`. Writers take a lock on `.lock`, so the
//! command line can be used while a server runs.

use std::fs::{File, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::certificate::timestamp;
use crate::ledger::Ledger;
use crate::private_file::{
    check_private_directory, create_private_directory, read_private, read_public, remove_leftovers,
    write_durably, write_private_new,
};
use crate::{
    FileError, Identity, IssuedCertificate, IssuedRecord, KeyRequest, RevokedRecord, Serial, TrustError,
};

const AUTHORITY_KEY_FILE: &str = "authority-key.pem";
const AUTHORITY_FILE: &str = "authority.pem";
const LOCK_FILE: &str = ".lock";

/// Twenty years: an authority that ends takes the whole site with it.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(20 * 365 * 86_400);
const VALIDITY_MIN: Duration = Duration::from_secs(60);
const VALIDITY_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How far a peer's clock may be behind the authority's.
const CLOCK_SKEW: Duration = Duration::from_secs(600);
const HOSTS_MAX: usize = 64;
const SITE_NAME_CHARS_MAX: usize = 64;
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// The site's authority: issues and revokes certificates.
#[derive(Debug)]
pub struct SiteAuthority {
    dir: PathBuf,
    site: String,
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    not_after: Timestamp,
    ledger: Ledger,
}

impl SiteAuthority {
    /// Creates the authority of a new site in `dir`. Of several that try at once, one succeeds;
    /// one that is killed half way leaves nothing that the next try does not replace.
    ///
    /// # Errors
    /// When there is an authority already, when others may use the directory, when the name does
    /// not fit, or when the system refuses.
    pub fn create(dir: &Path, site: &str, now: Timestamp) -> Result<Self, TrustError> {
        if site.is_empty() || site.chars().count() > SITE_NAME_CHARS_MAX || site.chars().any(char::is_control)
        {
            return Err(TrustError::SiteName(site.chars().take(80).collect()));
        }
        create_private_directory(dir)?;
        let _lock = lock(dir)?;
        let path = dir.join(AUTHORITY_KEY_FILE);
        if path.exists() {
            return Err(TrustError::AuthorityExists { dir: dir.to_owned() });
        }
        // Certificates of an authority whose key is gone would stop working unseen.
        if dir.join(AUTHORITY_FILE).exists() {
            return Err(TrustError::AuthorityExists { dir: dir.to_owned() });
        }
        remove_leftovers(&path)?;
        write_private_new(&path, new_authority(site, now)?.as_bytes()).map_err(|error| match error {
            FileError::Exists { .. } => TrustError::AuthorityExists { dir: dir.to_owned() },
            other => other.into(),
        })?;
        Self::open_locked(dir)
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    /// When there is none, when others may read its key or use its directory, or when it is damaged.
    pub fn open(dir: &Path) -> Result<Self, TrustError> {
        if !dir.join(AUTHORITY_KEY_FILE).exists() {
            return Err(TrustError::NoAuthority { dir: dir.to_owned() });
        }
        check_private_directory(dir)?;
        let _lock = lock(dir)?;
        Self::open_locked(dir)
    }

    fn open_locked(dir: &Path) -> Result<Self, TrustError> {
        let path = dir.join(AUTHORITY_KEY_FILE);
        let bytes = read_private(&path)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| TrustError::unreadable("the authority's key", error))?;
        let key =
            KeyPair::from_pem(text).map_err(|error| TrustError::unreadable("the authority's key", error))?;
        let der = CertificateDer::from_pem_slice(&bytes)
            .map_err(|error| TrustError::unreadable("the authority's certificate", error))?;
        let (site, not_after) = read_authority(&der, &key)?;
        let certificate_pem = pem_of(&der);
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|error| TrustError::unreadable("the authority's certificate", error))?;
        remove_leftovers(&path)?;
        let copy = dir.join(AUTHORITY_FILE);
        if read_public(&copy).ok().as_deref() != Some(certificate_pem.as_bytes()) {
            write_durably(&copy, certificate_pem.as_bytes())?;
        }
        Ok(Self { dir: dir.to_owned(), site, issuer, certificate_pem, not_after, ledger: Ledger::of(dir) })
    }

    /// The site's name.
    #[must_use]
    pub fn site(&self) -> &str {
        &self.site
    }

    /// The authority's certificate, which every machine of the site trusts.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Until when the authority holds; no certificate holds longer.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Issues a certificate with a new key. `hosts` are the DNS names and addresses by which its
    /// listener is called; without any, it cannot be a server. The certificate is on record before
    /// it is given out.
    ///
    /// # Errors
    /// When the identity, a host or the validity (1 minute to 10 years) is not allowed, when the
    /// authority is expired, or when the system refuses.
    pub fn issue(
        &self,
        identity: &Identity,
        hosts: &[String],
        validity: Duration,
        now: Timestamp,
    ) -> Result<IssuedCertificate, TrustError> {
        let request = KeyRequest::generate()?;
        let certificate_pem =
            self.issue_for_request(request.request_pem(), identity, hosts, validity, now)?;
        request.complete(&certificate_pem, &self.certificate_pem)
    }

    /// As [`SiteAuthority::issue`], for a key that was made elsewhere: gives the certificate for
    /// the key in `request_pem` (see [`KeyRequest`]). Nothing but the key is taken from the request.
    ///
    /// # Errors
    /// As [`SiteAuthority::issue`], or when the request is not a signed one for an ECDSA P-256 key.
    pub fn issue_for_request(
        &self,
        request_pem: &str,
        identity: &Identity,
        hosts: &[String],
        validity: Duration,
        now: Timestamp,
    ) -> Result<String, TrustError> {
        let unreadable =
            |why: &dyn ToString| TrustError::unreadable("the request for a certificate", why.to_string());
        if request_pem.len() > REQUEST_BYTES_MAX {
            return Err(unreadable(&"it is too long"));
        }
        let request =
            CertificateSigningRequestParams::from_pem(request_pem).map_err(|error| unreadable(&error))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(unreadable(&"its key is not ECDSA P-256"));
        }
        identity.check()?;
        let (params, record) = self.certificate_params(identity, hosts, validity, now)?;
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(TrustError::crypto("sign a certificate"))?;
        let _lock = lock(&self.dir)?;
        self.ledger.append_issued(&record)?;
        tracing::info!(identity = %record.identity, serial = %record.serial, not_after = %record.not_after, "certificate issued");
        Ok(certificate.pem())
    }

    fn certificate_params(
        &self,
        identity: &Identity,
        hosts: &[String],
        validity: Duration,
        now: Timestamp,
    ) -> Result<(CertificateParams, IssuedRecord), TrustError> {
        if !(VALIDITY_MIN..=VALIDITY_MAX).contains(&validity) {
            return Err(TrustError::Validity);
        }
        if now >= self.not_after {
            return Err(TrustError::AuthorityExpired(self.not_after));
        }
        let not_after = whole_seconds(later(now, validity)?.min(self.not_after));
        let serial = Serial::random()
            .ok_or(TrustError::Crypto { action: "number a certificate", why: "no random numbers".into() })?;
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(serial.bytes()));
        set_validity(&mut params, earlier(now)?, not_after)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, self.site.as_str());
        // Only for people who look at the certificate; programs read the URI.
        params.distinguished_name.push(DnType::CommonName, common_name(identity));
        params.subject_alt_names = alternative_names(identity, hosts)?;
        params.is_ca = IsCa::ExplicitNoCa;
        // TLS with these keys only signs, but QEMU refuses a certificate without the other.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !hosts.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        Ok((params, IssuedRecord { serial, identity: identity.clone(), not_after, issued_at: now }))
    }

    /// Every certificate that was issued, oldest first.
    ///
    /// # Errors
    /// When the record cannot be read or is damaged.
    pub fn issued(&self) -> Result<Vec<IssuedRecord>, TrustError> {
        self.ledger.issued()
    }

    /// Revokes a certificate; false when it was revoked before.
    ///
    /// # Errors
    /// When the record cannot be read, is damaged, or cannot be written.
    pub fn revoke(&self, serial: Serial, reason: &str, now: Timestamp) -> Result<bool, TrustError> {
        let _lock = lock(&self.dir)?;
        let new = self.ledger.revoke(serial, reason, now)?;
        if new {
            tracing::info!(%serial, reason, "certificate revoked");
        }
        Ok(new)
    }

    /// Every revoked certificate, as the file says now.
    ///
    /// # Errors
    /// When the record cannot be read or is damaged.
    pub fn revoked(&self) -> Result<Vec<RevokedRecord>, TrustError> {
        self.ledger.revoked()
    }

    /// Whether a certificate is revoked, as the file says now.
    ///
    /// # Errors
    /// When the record cannot be read or is damaged.
    pub fn is_revoked(&self, serial: Serial) -> Result<bool, TrustError> {
        Ok(self.revoked()?.iter().any(|record| record.serial == serial))
    }
}

fn new_authority(site: &str, now: Timestamp) -> Result<Zeroizing<String>, TrustError> {
    let random = Serial::random()
        .ok_or(TrustError::Crypto { action: "number the authority", why: "no random numbers".into() })?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(TrustError::crypto("make a key"))?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(random.bytes()));
    set_validity(&mut params, earlier(now)?, later(now, AUTHORITY_VALIDITY)?)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, site);
    // Two sites of one name must not look like one authority.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Lifeboat authority {}", &random.to_string()[..16]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(TrustError::crypto("sign the authority"))?;
    let key_pem = Zeroizing::new(key.serialize_pem());
    Ok(Zeroizing::new(format!("{}{}", key_pem.as_str(), certificate.pem())))
}

/// The site's name and the end of an authority's certificate, which must be for `key`.
fn read_authority(der: &CertificateDer<'_>, key: &KeyPair) -> Result<(String, Timestamp), TrustError> {
    let unreadable =
        |why: &dyn ToString| TrustError::unreadable("the authority's certificate", why.to_string());
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| unreadable(&error))?;
    if !certificate.is_ca() {
        return Err(unreadable(&"it is not an authority's"));
    }
    if certificate.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err(TrustError::KeyMismatch { who: "the site's authority".into() });
    }
    let site = certificate.subject().iter_organization().next().and_then(|name| name.as_str().ok());
    let site = site.ok_or_else(|| unreadable(&"it names no site"))?.to_owned();
    Ok((site, timestamp(certificate.validity().not_after)?))
}

fn alternative_names(identity: &Identity, hosts: &[String]) -> Result<Vec<SanType>, TrustError> {
    if hosts.len() > HOSTS_MAX {
        return Err(TrustError::Hosts { hosts: hosts.len(), hosts_max: HOSTS_MAX });
    }
    let uri = identity.to_string().try_into().map_err(TrustError::crypto("name the identity"))?;
    let mut names = vec![SanType::URI(uri)];
    for host in hosts {
        let refused = || TrustError::Host(host.chars().take(80).collect());
        let name = match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => {
                DnsName::try_from(host.as_str()).map_err(|_| refused())?;
                SanType::DnsName(host.as_str().try_into().map_err(|_| refused())?)
            }
        };
        names.push(name);
    }
    Ok(names)
}

/// At most 64 characters, as the standard wants.
fn common_name(identity: &Identity) -> String {
    match identity {
        Identity::Agent(server) => format!("agent {server}"),
        Identity::ProcessServer(name) => name.clone(),
        Identity::Vault => "vault".into(),
        Identity::Operator(name) => name.clone(),
    }
}

fn pem_of(der: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, letter) in body.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            pem.push('\n');
        }
        pem.push(letter);
    }
    pem.push_str("\n-----END CERTIFICATE-----\n");
    pem
}

fn lock(dir: &Path) -> Result<File, FileError> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(FileError::io("open", &path))?;
    file.lock().map_err(FileError::io("lock", &path))?;
    Ok(file)
}

fn later(now: Timestamp, by: Duration) -> Result<Timestamp, TrustError> {
    now.checked_add(by).map_err(|_| TrustError::Validity)
}

fn earlier(now: Timestamp) -> Result<Timestamp, TrustError> {
    now.checked_sub(CLOCK_SKEW).map_err(|_| TrustError::Validity)
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Sets from when until when a certificate holds, by way of the start of Unix time: rcgen's own
/// type of time comes from a crate that is not needed otherwise.
fn set_validity(params: &mut CertificateParams, from: Timestamp, until: Timestamp) -> Result<(), TrustError> {
    let seconds = |at: Timestamp| u64::try_from(at.as_second()).map_err(|_| TrustError::Validity);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(seconds(from)?);
    params.not_after = epoch + Duration::from_secs(seconds(until)?);
    Ok(())
}
