//! `lifeboat server …`.

use lifeboat_api::{
    CopyProgress, Facts, Firmware, Policy, PolicyRule, PreviousDrill, Protection, RequestState, Server,
    VerifyKind,
};
use lifeboat_model::{ByteCount, Milliseconds};

use crate::arguments::{Output, ServerCommand, SiteArguments};
use crate::command::status::print_servers;
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line, time};
use crate::waiting::{self, Patience};

pub async fn run(arguments: &SiteArguments, command: ServerCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let json = arguments.output == Output::Json;
    match command {
        ServerCommand::List => {
            let servers = vault.servers().await?;
            if json { print_json(&servers)? } else { print_servers(&servers) }
        }
        ServerCommand::Show { server } => {
            let server = vault.server(&server).await?;
            if json { print_json(&server)? } else { print_server(&server) }
        }
        ServerCommand::SetPolicy {
            server,
            interval,
            filesystem_interval,
            retention,
            copy_limit,
            capture_timeout,
        } => {
            let mut policy = vault.server(&server).await?.policy;
            if let Some(interval) = interval {
                policy.interval = interval;
            }
            if let Some(text) = filesystem_interval {
                policy.filesystem_interval = unless_off(&text)?;
            }
            if let Some(text) = retention {
                policy.retention = retention_rules(&text)?;
            }
            if let Some(text) = copy_limit {
                policy.copy_bytes_per_second = unless_off(&text)?;
            }
            if let Some(timeout) = capture_timeout {
                policy.capture_timeout = timeout;
            }
            let server = vault.set_policy(&server, &policy).await?;
            if json { print_json(&server)? } else { print_policy(&server.policy) }
        }
        ServerCommand::RemoveDisk { server, disk } => {
            vault.remove_disk(&server, disk).await?;
            let server = vault.server(&server).await?;
            if json {
                print_json(&server)?;
            } else {
                print_line(&format!("Disk {disk} of {} is not protected any more.", server.name));
                print_line("See that the agent's settings do not name it; otherwise it is brought back.");
            }
        }
        ServerCommand::Resync { server, wait, timeout } => {
            let mut request = vault.resync(&server).await?;
            if wait {
                let patience = Patience { limit: timeout, needs_agent: true, quiet: json };
                request = waiting::wait(&vault, request, patience).await?;
            }
            if json {
                print_json(&request)?;
            } else {
                print_line(
                    request.message.as_deref().unwrap_or("The resync begins at the agent's next report."),
                );
            }
            return Ok(if request.state == RequestState::Failed { Answer::No } else { Answer::Done });
        }
    }
    Ok(Answer::Done)
}

/// The word for a state.
pub fn state_word(state: Protection) -> &'static str {
    match state {
        Protection::Discovered => "discovered",
        Protection::InitialCopy => "initial copy",
        Protection::Protected => "protected",
        Protection::Resync => "resync",
        Protection::Stalled => "stalled",
        Protection::Disconnected => "disconnected",
        Protection::FailedOver => "failed over",
    }
}

/// How a drill ended, in a few words.
pub fn drill_end(drill: &PreviousDrill) -> String {
    match (drill.up, drill.boot_ms) {
        (true, Some(ms)) => format!("up after {}", Milliseconds(ms)),
        (true, None) => "came up".to_owned(),
        (false, _) => "did NOT come up".to_owned(),
    }
}

/// One line about a running copy.
pub fn copy_line(copy: &CopyProgress) -> String {
    let percent = copy.done_bytes.saturating_mul(100) / copy.total_bytes.max(1);
    let left = copy.left_seconds.map(|s| format!(", {} left", Milliseconds(s * 1000))).unwrap_or_default();
    format!(
        "{percent} % of {}, {}/s{left}, {} sent",
        ByteCount(copy.total_bytes),
        ByteCount(copy.bytes_per_second),
        ByteCount(copy.sent_bytes)
    )
}

fn print_server(server: &Server) {
    print_line(&format!("{} ({})", server.name, server.id));
    let reason = server.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    print_line(&format!("State      {}{reason}", state_word(server.state)));
    let why = server.capture.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    print_line(&format!("Capture    {}{why}", server.capture.mode));
    // Of a server that runs here, the source sends nothing, which is as it should be.
    if let Some(rpo) = server.rpo.as_ref().filter(|_| server.state != Protection::FailedOver) {
        print_line(&format!("RPO        {}, gated by {}", Milliseconds(rpo.age_ms), rpo.gated_by));
        print_line(&format!(
            "           capture {}, queue {}, transfer {}, commit {}",
            Milliseconds(rpo.capture_ms),
            Milliseconds(rpo.queue_ms),
            Milliseconds(rpo.transfer_ms),
            Milliseconds(rpo.commit_ms)
        ));
    }
    if let Some(point) = &server.newest_point {
        print_line(&format!("Newest     {} {} ({})", time(point.time), point.kind, point.id));
    }
    print_line(&format!("Points     {}, {} stored", server.points, ByteCount(server.stored_bytes)));
    if let Some(drill) = &server.last_drill {
        print_line(&format!("Last drill {}: {} (job {})", time(drill.begun), drill_end(drill), drill.job));
        if let Some(verdict) = drill.verdict.as_ref().filter(|_| !drill.up) {
            print_line(&format!("           {verdict}"));
        }
        if let Some(note) = &drill.note {
            print_line(&format!("           Note: {note}"));
        }
    }
    for disk in &server.disks {
        let hardware = disk.hardware_id.as_ref().map(|id| format!(" [{id}]")).unwrap_or_default();
        let waiting = ByteCount(disk.waiting_bytes);
        print_line(&format!(
            "Disk {:<5} {} {}{hardware}, {waiting} waiting",
            disk.number,
            disk.path,
            ByteCount(disk.bytes)
        ));
        if let Some(copy) = &disk.copy {
            print_line(&format!("           {}", copy_line(copy)));
        }
        if let Some(trouble) = &disk.trouble {
            print_line(&format!("           {trouble}"));
        }
    }
    if let (Some(version), Some(kernel)) = (&server.agent_version, &server.kernel) {
        let memory =
            server.agent_memory_bytes.map(|bytes| format!(", {}", ByteCount(bytes))).unwrap_or_default();
        print_line(&format!("Agent      {version} on Linux {kernel}{memory}"));
    }
    if let Some(facts) = &server.facts {
        print_facts(facts);
    }
    if let Some(name) = &server.process_server {
        print_line(&format!(
            "Through    process server {name}, {} in its spool",
            ByteCount(server.spool_bytes)
        ));
    }
    print_policy(&server.policy);
}

/// What the agent has found out, as far as it could.
fn print_facts(facts: &Facts) {
    let firmware = facts.firmware.map(|firmware| match firmware {
        Firmware::Bios => "BIOS".to_owned(),
        Firmware::Uefi => "UEFI".to_owned(),
    });
    let parts = [
        facts.os.clone(),
        facts.cpus.map(|cpus| format!("{cpus} processors")),
        facts.memory_bytes.map(|bytes| format!("{} of memory", ByteCount(bytes))),
        firmware,
        facts.root.as_ref().map(|root| format!("root {root}")),
        facts.boot_ms.map(|ms| format!("starts in {}", Milliseconds(ms))),
    ];
    print_line(&format!("System     {}", parts.into_iter().flatten().collect::<Vec<_>>().join(", ")));
    for interface in &facts.interfaces {
        let addresses = interface.addresses.join(", ");
        let fixed = if interface.fixed { " fixed" } else { "" };
        print_line(format!("Network    {} {}{fixed} {addresses}", interface.name, interface.mac).trim_end());
    }
    for unknown in &facts.unknown {
        print_line(&format!("Not known  {unknown}"));
    }
}

fn print_policy(policy: &Policy) {
    let frozen = policy
        .filesystem_interval
        .map(|span| format!(", with file systems frozen every {span}"))
        .unwrap_or_default();
    print_line(&format!("Policy     a point every {}{frozen}", policy.interval));
    for PolicyRule { until, every } in &policy.retention {
        let kept = every.map_or_else(|| "every point".to_owned(), |every| format!("one point every {every}"));
        print_line(&format!("           up to {until}: {kept}"));
    }
}

fn unless_off<T: std::str::FromStr>(text: &str) -> Result<Option<T>, Failure>
where
    T::Err: std::error::Error + 'static,
{
    if text == "off" { Ok(None) } else { Ok(Some(text.parse()?)) }
}

fn retention_rules(text: &str) -> Result<Vec<PolicyRule>, Failure> {
    text.split(',')
        .map(|rule| {
            let (until, every) =
                rule.split_once(':').map_or((rule, None), |(until, every)| (until, Some(every)));
            Ok(PolicyRule { until: until.parse()?, every: every.map(str::parse).transpose()? })
        })
        .collect()
}

/// What `verify` asks for.
pub const fn verify_kind(against_source: bool) -> VerifyKind {
    if against_source { VerifyKind::AgainstSource } else { VerifyKind::Stored }
}
