//! What agents have found out about their servers.

use jiff::Timestamp;
use lifeboat_model::ServerId;
use lifeboat_wire::facts::ServerFacts;
use serde::{Deserialize, Serialize};
use sqlx::query;

use super::CatalogError;
use super::database::Catalog;
use super::row::{RowValues, json_text, time_ns};

/// The newest facts of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactsRow {
    /// The facts.
    pub facts: ServerFacts,
    /// When they were received, by the vault's clock.
    pub received: Timestamp,
}

impl Catalog {
    /// A server's newest facts; none before its agent has sent any.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn facts(&self, server: ServerId) -> Result<Option<FactsRow>, CatalogError> {
        let statement =
            query("SELECT facts, received_ns FROM server_facts WHERE server = $1").bind(server.to_string());
        let row = self.optional(statement).await?;
        row.map(|row| Ok(FactsRow { facts: row.json("facts")?, received: row.time("received_ns")? }))
            .transpose()
    }

    /// Replaces a server's facts.
    ///
    /// # Errors
    /// When there is no such server, or the catalog fails.
    pub async fn put_facts(&self, server: ServerId, row: &FactsRow) -> Result<(), CatalogError> {
        let statement = query(
            "INSERT INTO server_facts (server, facts, received_ns) VALUES ($1, $2, $3) \
             ON CONFLICT (server) DO UPDATE SET facts = excluded.facts, received_ns = excluded.received_ns",
        )
        .bind(server.to_string())
        .bind(json_text("facts", &row.facts)?)
        .bind(time_ns(row.received)?);
        self.run_alone(statement).await.map(drop)
    }
}
