//! After a failover the source's history takes nothing more, whatever happens to the vault.

use lifeboat_api::JobState;
use lifeboat_model::{DiskNumber, Epoch, Part};
use lifeboat_vault::VaultError;
use lifeboat_vault::rebuild::{CheckFiles, rebuild_catalog};
use lifeboat_wire::process_server::GrantRequest;

use crate::site::{Site, failover};
use crate::support::{Files, PROCESS_SERVER, SERVER, at, describe, listed};

/// Whether the vault takes a file and a point of the third epoch, and how it refuses.
async fn source_goes_on(vault: &lifeboat_vault::Vault) -> Result<(), VaultError> {
    let files = Files::counted();
    let content = files.content(SERVER, 0, 3, 0);
    let file = describe(0, 3, 0, &content);
    assert_eq!((file.disk, file.epoch, file.part), (DiskNumber(0), Epoch(3), Part(0)));
    let grant = vault.grant(PROCESS_SERVER, &GrantRequest { server: SERVER, file }, at(40)).await?;
    crate::support::send(vault, &grant.url, &[content]).await?;
    vault.commit_point(PROCESS_SERVER, &files.commit(SERVER, 30, &[(0, 3, 1)]), at(41)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_was_failed_over_is_refused_also_by_a_catalog_made_anew() {
    let site = Site::new().await;
    let job = site.run(failover("latest-processed")).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    let points = listed(&site.vault, SERVER).await;
    let error = source_goes_on(&site.vault).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (409, "fenced"), "{error}");

    // A point whose files were stored before the fence is refused too.
    let files = Files::counted();
    let commit = files.commit(SERVER, 30, &[(0, 3, 0)]);
    let error = site.vault.commit_point(PROCESS_SERVER, &commit, at(41)).await.unwrap_err();
    assert_eq!(error.code(), "fenced", "{error}");
    assert_eq!(listed(&site.vault, SERVER).await, points);

    // Its agent is told, and why.
    site.vault.catalog().route(SERVER, PROCESS_SERVER).await.unwrap();
    let assignments = site.vault.assignments(PROCESS_SERVER).await.unwrap();
    let assignment = &assignments.servers[&SERVER];
    assert!(!assignment.replicate);
    assert!(assignment.reason.as_ref().unwrap().contains("failed over"), "{assignment:?}");

    let Site { dir, vault, volumes, provider, jobs, .. } = site;
    jobs.pause().await;
    for machine in provider.machines().await.unwrap() {
        provider.remove(machine).await.unwrap();
    }
    volumes.stop().await;
    vault.close().await;
    drop((jobs, volumes, provider, vault));
    let state = dir.path().join("state");
    let report = loop {
        match rebuild_catalog(&state, None, CheckFiles::Sizes, at(50)).await {
            Ok(report) => break report,
            Err(error) if error.to_string().contains("uses") => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(report.points, 2);
    let vault =
        lifeboat_vault::Vault::open(&state, None, crate::support::Counted::from(5000), at(60)).await.unwrap();
    let error = source_goes_on(&vault).await.unwrap_err();
    assert_eq!(error.code(), "fenced", "{error}");
}
