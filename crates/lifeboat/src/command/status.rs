//! `lifeboat status`.

use lifeboat_api::{Server, Status};
use lifeboat_model::{ByteCount, Milliseconds};

use crate::arguments::{Output, SiteArguments};
use crate::failure::{Answer, Failure};
use crate::table::{print_json, print_line, print_table, time};
use crate::{command::server::state_word, site};

pub async fn status(arguments: &SiteArguments) -> Result<Answer, Failure> {
    let status = site::connect(arguments)?.status().await?;
    if arguments.output == Output::Json {
        print_json(&status)?;
    } else {
        print_status(&status);
    }
    Ok(Answer::Done)
}

fn print_status(status: &Status) {
    let free = status.store_free_bytes.map(|free| format!(", {} free", ByteCount(free))).unwrap_or_default();
    print_line(&format!("Vault {} ({}), store {}", status.vault, status.version, status.store));
    print_line(&format!(
        "{} stored{free}, {} open volumes\n",
        ByteCount(status.stored_bytes),
        status.open_volumes
    ));
    print_servers(&status.servers);
    if !status.process_servers.is_empty() {
        print_line("");
        let rows: Vec<_> = status
            .process_servers
            .iter()
            .map(|server| {
                let free = format!(
                    "{} of {}",
                    ByteCount(server.spool_free_bytes),
                    ByteCount(server.spool_total_bytes)
                );
                [server.name.clone(), server.spool_state.clone(), free, time(server.heard)]
            })
            .collect();
        print_table(["PROCESS SERVER", "SPOOL", "FREE", "LAST HEARD (UTC)"], &rows);
    }
    if !status.attention.is_empty() {
        print_line("\nWants attention:");
        for event in &status.attention {
            let line = format!(
                "  {:<6}{}  {}  {} {}",
                event.number,
                time(event.time),
                event.severity,
                event.message,
                event.next_step
            );
            print_line(line.trim_end());
        }
        print_line(
            "`lifeboat event acknowledge NUMBER` takes what was seen to off this list, `--all` takes all.",
        );
    }
}

/// The servers as a table.
pub fn print_servers(servers: &[Server]) {
    if servers.is_empty() {
        print_line("No server is protected yet.");
        return;
    }
    let rows: Vec<_> = servers
        .iter()
        .map(|server| {
            let rpo = server.rpo.as_ref();
            let newest = server.newest_point.as_ref();
            [
                server.name.clone(),
                server.id.to_string(),
                state_word(server.state).to_owned(),
                rpo.map_or_else(|| "-".to_owned(), |rpo| Milliseconds(rpo.age_ms).to_string()),
                newest.map_or_else(|| "-".to_owned(), |point| format!("{} {}", time(point.time), point.kind)),
                ByteCount(server.disks.iter().map(|disk| disk.waiting_bytes).sum()).to_string(),
                ByteCount(server.stored_bytes).to_string(),
            ]
        })
        .collect();
    print_table(["SERVER", "ID", "STATE", "RPO", "NEWEST POINT (UTC)", "WAITING", "STORED"], &rows);
}
