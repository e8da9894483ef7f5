//! Waiting for a request: never silently for long, and never for somebody who will not come.

use std::time::{Duration, Instant};

use lifeboat_api::{Protection, Request, RequestState, Server};
use lifeboat_client::{Vault, VaultError};
use lifeboat_model::Span;

use crate::command::server::{copy_line, state_word};
use crate::failure::Failure;

/// How long one question is held back by the vault.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a vault may be away, as when it is restarted.
const AWAY_MAX: Duration = Duration::from_secs(120);
/// How long an agent may stay disconnected, which is after a minute of silence, as when its server boots.
const DISCONNECTED_MAX: Duration = Duration::from_secs(120);

/// How a request is waited for.
#[derive(Clone, Copy)]
pub struct Patience {
    /// At most so long.
    pub limit: Option<Span>,
    /// The server's agent does it, so without one nothing comes.
    pub needs_agent: bool,
    /// Nothing is told meanwhile.
    pub quiet: bool,
}

/// Waits until a request has ended. What goes on meanwhile is told on standard error.
pub async fn wait(vault: &Vault, request: Request, patience: Patience) -> Result<Request, Failure> {
    let mut waiting = Waiting { patience, began: Instant::now(), away: None, disconnected: None, told: None };
    let mut request = request;
    let mut hold = Duration::ZERO;
    while request.state == RequestState::Running {
        match vault.request(&request.id, hold).await {
            Ok(answer) => {
                waiting.away = None;
                request = answer;
            }
            Err(error) => waiting.vault_away(error).await?,
        }
        if request.state == RequestState::Running {
            if let Ok(server) = vault.server(&request.server.to_string()).await {
                waiting.look_at(&server, &request)?;
            }
            hold = waiting.time_to_hold(&request)?;
        }
    }
    Ok(request)
}

struct Waiting {
    patience: Patience,
    began: Instant,
    /// Since when the vault does not answer.
    away: Option<Instant>,
    /// Since when the agent is known to be disconnected.
    disconnected: Option<Instant>,
    told: Option<String>,
}

impl Waiting {
    async fn vault_away(&mut self, error: VaultError) -> Result<(), Failure> {
        let since = *self.away.get_or_insert_with(Instant::now);
        if !error.is_retryable() || since.elapsed() > AWAY_MAX {
            return Err(error.into());
        }
        self.tell(format!("the vault does not answer, waiting for it: {error}"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    fn look_at(&mut self, server: &Server, request: &Request) -> Result<(), Failure> {
        let reason = server.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let state = format!("{} is {}{reason}", server.name, state_word(server.state));
        if self.patience.needs_agent && server.state == Protection::Disconnected {
            let since = *self.disconnected.get_or_insert_with(Instant::now);
            if since.elapsed() > DISCONNECTED_MAX {
                return Err(stays("disconnected", &state, request));
            }
            self.tell(format!("{state} Waiting for its agent."));
            return Ok(());
        }
        self.disconnected = None;
        // Nobody wants to read about what takes a second or two.
        if self.began.elapsed() >= LOOK_EVERY {
            let copies: Vec<_> =
                server.disks.iter().filter_map(|disk| disk.copy.as_ref()).map(copy_line).collect();
            let progress = if copies.is_empty() { String::new() } else { format!("; {}", copies.join("; ")) };
            self.tell(format!("waiting for the {} request: {state}{progress}", request.kind));
        }
        Ok(())
    }

    /// How long the vault may hold back its next answer.
    fn time_to_hold(&self, request: &Request) -> Result<Duration, Failure> {
        let Some(limit) = self.patience.limit else { return Ok(LOOK_EVERY) };
        match limit.duration().checked_sub(self.began.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left.min(LOOK_EVERY)),
            _ => Err(stays("timeout", &format!("the request was not done within {limit}"), request)),
        }
    }

    fn tell(&mut self, sentence: String) {
        if !self.patience.quiet && self.told.as_ref() != Some(&sentence) {
            eprintln!("lifeboat: {sentence}");
            self.told = Some(sentence);
        }
    }
}

fn stays(code: &str, why: &str, request: &Request) -> Failure {
    let why = why.trim_end_matches('.');
    Failure::coded(
        code,
        format!(
            "{why}; the {} request {} stays for a day, in case that it can be done after all",
            request.kind, request.id
        ),
    )
}
