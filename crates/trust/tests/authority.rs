//! The authority and the credentials that it gives out, on real files.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_model::ServerId;
use lifeboat_trust::{
    ClientCertificates, Credentials, Identity, KeyRequest, Revocations, SiteAuthority, TrustError,
};

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn agent() -> Identity {
    Identity::Agent(ServerId::new(7))
}

struct Site {
    _dir: tempfile::TempDir,
    authority_dir: std::path::PathBuf,
    bundle: std::path::PathBuf,
    authority: SiteAuthority,
}

fn site(name: &str) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let authority_dir = dir.path().join("authority");
    let authority = SiteAuthority::create(&authority_dir, name, now()).unwrap();
    Site { bundle: dir.path().join("bundle"), _dir: dir, authority_dir, authority }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_authority_is_private_and_opens_again() {
    let site = site("Plant North");
    assert_eq!(mode(&site.authority_dir), 0o700);
    assert_eq!(mode(&site.authority_dir.join("authority-key.pem")), 0o600);
    let again = SiteAuthority::open(&site.authority_dir).unwrap();
    assert_eq!(again.site(), "Plant North");
    assert_eq!(again.certificate_pem(), site.authority.certificate_pem());
    assert_eq!(names_in(&site.authority_dir), [".lock", "authority-key.pem", "authority.pem"]);
    let issued = again.issue(&agent(), &[], DAY, now()).unwrap();
    issued.write_bundle(&site.bundle).unwrap();
    Credentials::load(&site.bundle, now()).unwrap();
}

#[test]
fn an_authority_is_never_overwritten() {
    let site = site("a");
    let before = fs::read(site.authority_dir.join("authority-key.pem")).unwrap();
    let error = SiteAuthority::create(&site.authority_dir, "b", now()).unwrap_err();
    assert!(matches!(error, TrustError::AuthorityExists { .. }), "{error}");
    assert_eq!(fs::read(site.authority_dir.join("authority-key.pem")).unwrap(), before);
    // Nor when its key was moved away but its certificate is still in use.
    fs::remove_file(site.authority_dir.join("authority-key.pem")).unwrap();
    let error = SiteAuthority::create(&site.authority_dir, "b", now()).unwrap_err();
    assert!(matches!(error, TrustError::AuthorityExists { .. }), "{error}");
}

#[test]
fn of_many_creators_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("authority");
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    SiteAuthority::create(&path, "a", now()).map(|made| made.certificate_pem().to_owned())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<_> = made.iter().filter_map(|made| made.as_ref().ok()).collect();
    assert_eq!(winners.len(), 1, "{made:?}");
    assert_eq!(SiteAuthority::open(&path).unwrap().certificate_pem(), winners[0]);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let site = site("a");
    let key = site.authority_dir.join("authority-key.pem");
    chmod(&key, 0o640);
    let error = SiteAuthority::open(&site.authority_dir).unwrap_err().to_string();
    assert!(error.ends_with(&format!("run: chmod 600 {}", key.display())), "{error}");
    chmod(&key, 0o600);
    chmod(&site.authority_dir, 0o755);
    let error = SiteAuthority::open(&site.authority_dir).unwrap_err().to_string();
    assert!(error.ends_with(&format!("run: chmod 700 {}", site.authority_dir.display())), "{error}");
}

#[test]
fn creation_that_was_killed_half_way_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("authority");
    fs::create_dir(&path).unwrap();
    chmod(&path, 0o700);
    // As it looks after a kill before the rename: no authority yet.
    let leftover = path.join(".authority-key.pem.0123456789abcdef.tmp");
    fs::write(&leftover, "-----BEGIN PRIV").unwrap();
    assert!(matches!(SiteAuthority::open(&path), Err(TrustError::NoAuthority { .. })));
    let made = SiteAuthority::create(&path, "a", now()).unwrap();
    assert!(!leftover.exists());
    // As it looks after a kill between the key and the copy of the certificate.
    fs::remove_file(path.join("authority.pem")).unwrap();
    fs::write(&leftover, "-----BEGIN PRIV").unwrap();
    let opened = SiteAuthority::open(&path).unwrap();
    assert_eq!(opened.certificate_pem(), made.certificate_pem());
    assert_eq!(fs::read_to_string(path.join("authority.pem")).unwrap(), made.certificate_pem());
    assert!(!leftover.exists());
}

#[test]
fn a_damaged_authority_is_refused() {
    let site = site("a");
    let path = site.authority_dir.join("authority-key.pem");
    let other = SiteAuthority::create(&site.bundle, "b", now()).unwrap();
    let whole = fs::read_to_string(&path).unwrap();
    let certificate_at = whole.find("-----BEGIN CERTIFICATE").unwrap();
    for damaged in [
        String::new(),
        whole[..certificate_at].to_owned(),
        whole[certificate_at..].to_owned(),
        format!("{}{}", &whole[..certificate_at], other.certificate_pem()),
    ] {
        fs::write(&path, &damaged).unwrap();
        assert!(SiteAuthority::open(&site.authority_dir).is_err(), "{damaged}");
    }
}

#[test]
fn a_bundle_is_private_and_says_who_it_is_for() {
    let site = site("a");
    let issued =
        site.authority.issue(&agent(), &["agent.example.org".into(), "::1".into()], DAY, now()).unwrap();
    issued.write_bundle(&site.bundle).unwrap();
    assert_eq!(mode(&site.bundle), 0o700);
    assert_eq!(mode(&site.bundle.join("key.pem")), 0o600);
    assert_eq!(names_in(&site.bundle), ["authority.pem", "certificate.pem", "key.pem"]);
    let credentials = Credentials::load(&site.bundle, now()).unwrap();
    assert_eq!(credentials.identity(), &agent());
    assert_eq!(credentials.hosts(), ["agent.example.org", "::1"]);
    assert_eq!(credentials.serial(), issued.serial);
    assert_eq!(credentials.not_after(), now() + DAY);
    credentials.server_config(ClientCertificates::Required, &Revocations::new()).unwrap();
    credentials.client_config().unwrap();
}

#[test]
fn credentials_say_what_is_wrong_with_them() {
    let site_a = site("same name");
    let site_b = site("same name");
    let bundle = &site_a.bundle;
    let load = |at: Timestamp| Credentials::load(bundle, at).unwrap_err();
    assert!(load(now()).to_string().contains("certificate.pem does not exist"), "{}", load(now()));

    let issued = site_a.authority.issue(&agent(), &[], DAY, now()).unwrap();
    issued.write_bundle(bundle).unwrap();
    let later = load(now() + DAY * 2);
    assert!(matches!(later, TrustError::Expired { .. }), "{later}");
    assert!(later.to_string().contains("expired at 2030-01-02T00:00:00Z"), "{later}");
    let earlier = load(now() - DAY);
    assert!(earlier.to_string().contains("is the clock wrong?"), "{earlier}");

    chmod(&bundle.join("key.pem"), 0o644);
    assert!(load(now()).to_string().contains("chmod 600"), "{}", load(now()));
    chmod(&bundle.join("key.pem"), 0o600);

    let other_key = site_a.authority.issue(&agent(), &[], DAY, now()).unwrap().key_pem;
    fs::write(bundle.join("key.pem"), other_key.as_bytes()).unwrap();
    assert!(matches!(load(now()), TrustError::KeyMismatch { .. }), "{}", load(now()));
    fs::write(bundle.join("key.pem"), "nonsense").unwrap();
    assert!(matches!(load(now()), TrustError::Unreadable { what: "the private key", .. }), "{}", load(now()));
    fs::write(bundle.join("key.pem"), issued.key_pem.as_bytes()).unwrap();
    Credentials::load(bundle, now()).unwrap();

    fs::write(bundle.join("authority.pem"), site_b.authority.certificate_pem()).unwrap();
    assert!(matches!(load(now()), TrustError::OtherSite { .. }), "{}", load(now()));
    fs::remove_file(bundle.join("authority.pem")).unwrap();
    assert!(matches!(load(now()), TrustError::NoBundle { .. }), "{}", load(now()));
}

#[test]
fn a_renewal_that_is_killed_anywhere_leaves_one_whole_bundle() {
    let site = site("a");
    let old = site.authority.issue(&agent(), &[], DAY, now()).unwrap();
    let new = site.authority.issue(&agent(), &[], DAY, now()).unwrap();
    old.write_bundle(&site.bundle).unwrap();
    let serial = || Credentials::load(&site.bundle, now()).unwrap().serial();
    // Killed after the new key was laid beside the old one.
    lifeboat_trust::private_file::write_private(&site.bundle.join("next-key.pem"), new.key_pem.as_bytes())
        .unwrap();
    assert_eq!(serial(), old.serial);
    // Killed after the new certificate.
    fs::write(site.bundle.join("certificate.pem"), &new.certificate_pem).unwrap();
    assert_eq!(serial(), new.serial);
    // Tried again.
    let newest = site.authority.issue(&agent(), &[], DAY, now()).unwrap();
    newest.write_bundle(&site.bundle).unwrap();
    assert_eq!(serial(), newest.serial);
    assert_eq!(names_in(&site.bundle), ["authority.pem", "certificate.pem", "key.pem"]);
}

#[test]
fn what_was_issued_is_on_record_even_after_a_torn_line() {
    let site = site("a");
    let first = site.authority.issue(&agent(), &[], DAY, now()).unwrap();
    let path = site.authority_dir.join("issued.jsonl");
    let torn = format!("{}{}", fs::read_to_string(&path).unwrap(), "{\"serial\":\"01");
    fs::write(&path, torn).unwrap();
    assert_eq!(site.authority.issued().unwrap().len(), 1);
    let second = site.authority.issue(&Identity::Vault, &[], DAY, now()).unwrap();
    let issued = site.authority.issued().unwrap();
    assert_eq!(issued.iter().map(|record| record.serial).collect::<Vec<_>>(), [first.serial, second.serial]);
    assert_eq!(issued[1].identity, Identity::Vault);
    assert_eq!(issued[1].not_after, now() + DAY);
    fs::write(&path, "{}\n").unwrap();
    let error = site.authority.issued().unwrap_err().to_string();
    assert!(error.contains("issued.jsonl is damaged at line 1"), "{error}");
}

#[test]
fn many_issue_at_once_and_all_are_on_record() {
    let site = site("a");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let dir = &site.authority_dir;
            scope.spawn(move || SiteAuthority::open(dir).unwrap().issue(&agent(), &[], DAY, now()).unwrap());
        }
    });
    assert_eq!(site.authority.issued().unwrap().len(), 8);
}

#[test]
fn revocations_are_kept_with_time_and_reason() {
    let site = site("a");
    let issued = site.authority.issue(&agent(), &[], DAY, now()).unwrap();
    assert!(!site.authority.is_revoked(issued.serial).unwrap());
    assert!(site.authority.revoke(issued.serial, "stolen", now()).unwrap());
    assert!(!site.authority.revoke(issued.serial, "again", now()).unwrap());
    let again = SiteAuthority::open(&site.authority_dir).unwrap();
    assert!(again.is_revoked(issued.serial).unwrap());
    let revoked = again.revoked().unwrap();
    assert_eq!((revoked.len(), revoked[0].reason.as_str(), revoked[0].at), (1, "stolen", now()));
    fs::write(site.authority_dir.join("revoked.json"), "{").unwrap();
    assert!(matches!(site.authority.is_revoked(issued.serial), Err(TrustError::Records { .. })));
}

#[test]
fn a_key_made_elsewhere_gets_a_certificate_and_nothing_else_from_its_request() {
    let site = site("a");
    let request = KeyRequest::generate().unwrap();
    let certificate =
        site.authority.issue_for_request(request.request_pem(), &agent(), &[], DAY, now()).unwrap();
    let bundle = request.complete(&certificate, site.authority.certificate_pem()).unwrap();
    assert_eq!(bundle.identity, agent());
    let stranger = KeyRequest::generate().unwrap();
    assert!(matches!(
        stranger.complete(&certificate, site.authority.certificate_pem()),
        Err(TrustError::KeyMismatch { .. })
    ));
    // A request whose signature does not fit: nobody has shown to hold the key.
    let request = KeyRequest::generate().unwrap();
    let mut lines: Vec<String> = request.request_pem().lines().map(str::to_owned).collect();
    let last = lines.len() - 2;
    let flipped: String = lines[last]
        .chars()
        .rev()
        .enumerate()
        .map(|(place, c)| if place == 6 { if c == 'A' { 'B' } else { 'A' } } else { c })
        .collect();
    lines[last] = flipped.chars().rev().collect();
    let error = site.authority.issue_for_request(&lines.join("\n"), &agent(), &[], DAY, now()).unwrap_err();
    assert!(matches!(error, TrustError::Unreadable { .. }), "{error}");
}

#[test]
fn what_cannot_stand_in_a_certificate_is_refused() {
    let site = site("a");
    let issue = |identity: Identity, hosts: &[&str], validity| {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        site.authority.issue(&identity, &hosts, validity, now())
    };
    assert!(matches!(issue(Identity::Operator("An na".into()), &[], DAY), Err(TrustError::Identity(_))));
    assert!(matches!(issue(agent(), &["no host"], DAY), Err(TrustError::Host(_))));
    assert!(matches!(issue(agent(), &["x.org"; 65], DAY), Err(TrustError::Hosts { .. })));
    assert!(matches!(issue(agent(), &[], Duration::ZERO), Err(TrustError::Validity)));
    assert!(matches!(issue(agent(), &[], Duration::MAX), Err(TrustError::Validity)));
    let end = site.authority.not_after();
    let late = site.authority.issue(&agent(), &[], DAY * 365, end - DAY).unwrap();
    assert_eq!(late.not_after, end, "a certificate does not outlive its authority");
    assert!(matches!(site.authority.issue(&agent(), &[], DAY, end), Err(TrustError::AuthorityExpired(_))));
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "a\nb", &"x".repeat(65)] {
        assert!(matches!(SiteAuthority::create(dir.path(), name, now()), Err(TrustError::SiteName(_))));
    }
    assert_eq!(site.authority.issued().unwrap().len(), 1, "only what was given out is on record");
}

#[test]
fn certificates_say_the_key_usages_that_qemu_wants() {
    let site = site("a");
    for hosts in [vec![], vec!["localhost".to_owned()]] {
        let issued = site.authority.issue(&agent(), &hosts, DAY, now()).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(issued.certificate_pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment(), "{usage}");
    }
}
