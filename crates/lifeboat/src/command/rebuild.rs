//! `lifeboat vault rebuild-catalog`.

use jiff::Timestamp;
use lifeboat_model::ByteCount;
use lifeboat_vault::rebuild::{CheckFiles, RebuildReport, rebuild_catalog};
use lifeboat_vault::{Settings, Store};

use crate::arguments::{Output, SiteArguments};
use crate::failure::{Answer, Failure};
use crate::table::{print_json, print_line};

/// Makes the catalog anew. The answer is no when something in the store did not make it.
pub async fn run(
    arguments: &SiteArguments,
    settings: Settings,
    check_digests: bool,
) -> Result<Answer, Failure> {
    let store = settings.store.as_deref().map(Store::open).transpose()?;
    let check = if check_digests { CheckFiles::Digests } else { CheckFiles::Sizes };
    let report = rebuild_catalog(&settings.state, store, check, Timestamp::now()).await?;
    if arguments.output == Output::Json {
        print_json(&json(&report))?;
    } else {
        print_line(&format!(
            "The catalog of vault {} is made anew: {} servers, {} points, {} files, {}.",
            report.vault,
            report.servers,
            report.points,
            report.files,
            ByteCount(report.bytes)
        ));
        if let Some(former) = &report.former_catalog {
            print_line(&format!("The former catalog is now {}.", former.display()));
        }
        for refused in &report.refused {
            print_line(&format!("  not taken: {}: {}", refused.object, refused.why));
        }
    }
    Ok(if report.refused.is_empty() { Answer::Done } else { Answer::No })
}

fn json(report: &RebuildReport) -> serde_json::Value {
    let refused: Vec<_> =
        report.refused.iter().map(|one| serde_json::json!({"object": one.object, "why": one.why})).collect();
    serde_json::json!({
        "vault": report.vault,
        "servers": report.servers,
        "points": report.points,
        "files": report.files,
        "bytes": report.bytes,
        "refused": refused,
        "former_catalog": report.former_catalog,
    })
}
