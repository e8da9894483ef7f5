//! `lifeboat authority …` and `lifeboat certificate …`.

use std::path::Path;

use jiff::Timestamp;
use lifeboat_model::ServerId;
use lifeboat_trust::{Identity, SiteAuthority};

use crate::arguments::{AuthorityCommand, CertificateCommand, Output, Role, SiteArguments};
use crate::failure::{Answer, Failure};
use crate::table::{print_json, print_line, print_table, time};

pub fn authority(arguments: &SiteArguments, command: AuthorityCommand) -> Result<Answer, Failure> {
    let AuthorityCommand::Create { name, dir } = command;
    let authority = SiteAuthority::create(&dir, &name, Timestamp::now())?;
    if arguments.output == Output::Json {
        print_json(
            &serde_json::json!({"site": authority.site(), "directory": dir, "not_after": authority.not_after()}),
        )?;
    } else {
        print_line(&format!("Site {name} has its authority in {}. Guard this directory.", dir.display()));
    }
    Ok(Answer::Done)
}

pub fn run(arguments: &SiteArguments, command: CertificateCommand) -> Result<Answer, Failure> {
    let json = arguments.output == Output::Json;
    match command {
        CertificateCommand::Issue { authority, role, name, server, hosts, validity, dir } => {
            let identity = identity(role, name, server)?;
            let authority = SiteAuthority::open(&authority)?;
            let issued = authority.issue(&identity, &hosts, validity.duration(), Timestamp::now())?;
            issued.write_bundle(&dir)?;
            if json {
                print_json(&serde_json::json!({
                    "serial": issued.serial, "identity": identity, "not_after": issued.not_after, "directory": dir,
                }))?;
            } else {
                print_line(&format!(
                    "{identity} until {} (UTC), in {}",
                    time(issued.not_after),
                    dir.display()
                ));
            }
        }
        CertificateCommand::List { authority } => list(&authority, json)?,
        CertificateCommand::Revoke { authority, serial, reason } => {
            let new = SiteAuthority::open(&authority)?.revoke(serial.parse()?, &reason, Timestamp::now())?;
            if json {
                print_json(&serde_json::json!({"serial": serial, "revoked": true}))?;
            } else if new {
                print_line("Revoked. The vault refuses it as soon as its revocation list says so.");
            } else {
                print_line("It was revoked before.");
            }
        }
    }
    Ok(Answer::Done)
}

fn list(authority: &Path, json: bool) -> Result<(), Failure> {
    let authority = SiteAuthority::open(authority)?;
    let revoked = authority.revoked()?;
    let certificates: Vec<_> = authority
        .issued()?
        .into_iter()
        .map(|record| lifeboat_api::Certificate {
            revoked: revoked.iter().any(|entry| entry.serial == record.serial),
            serial: record.serial.to_string(),
            identity: record.identity.to_string(),
            not_after: record.not_after,
        })
        .collect();
    if json {
        return print_json(&certificates);
    }
    let rows: Vec<_> = certificates
        .into_iter()
        .map(|certificate| {
            let state = if certificate.revoked { "revoked" } else { "good" };
            [certificate.serial, certificate.identity, time(certificate.not_after), state.to_owned()]
        })
        .collect();
    print_table(["SERIAL", "IDENTITY", "UNTIL (UTC)", "STATE"], &rows);
    Ok(())
}

fn identity(role: Role, name: Option<String>, server: Option<ServerId>) -> Result<Identity, Failure> {
    if server.is_some() && !matches!(role, Role::Agent) {
        return Err(Failure::new("--server is for an agent's certificate: leave it out, or say --for agent"));
    }
    let named = |name: Option<String>| name.ok_or_else(|| Failure::new("this role needs a name: add --name"));
    Ok(match role {
        Role::Agent => Identity::Agent(server.map_or_else(random_server_id, Ok)?),
        Role::ProcessServer => Identity::ProcessServer(named(name)?),
        Role::Vault => Identity::Vault,
        Role::Operator => Identity::Operator(named(name)?),
    })
}

/// A new server's id.
pub fn random_server_id() -> Result<ServerId, Failure> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Failure::new(format!("the system gives no random numbers: {error}")))?;
    Ok(ServerId::new(u64::from_le_bytes(bytes)))
}
