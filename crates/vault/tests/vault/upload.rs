use lifeboat_hrl::DiskKey;
use lifeboat_model::VaultId;
use lifeboat_vault::{UploadRefusal, VaultError};
use lifeboat_wire::process_server::GrantRequest;

use crate::support::*;

async fn granted(fixture: &Fixture) -> String {
    register(&fixture.vault, SERVER, "db1", 0).await;
    let request = GrantRequest { server: SERVER, file: file(0, 1, 0) };
    fixture.vault.grant(PROCESS_SERVER, &request, at(2)).await.unwrap().url
}

fn stored_files(fixture: &Fixture) -> Vec<String> {
    tree(&fixture.store_path()).into_iter().filter(|name| name.contains(".hrl")).collect()
}

#[tokio::test]
async fn what_is_received_whole_is_stored_and_need_not_be_sent_again() {
    let fixture = Fixture::new().await;
    let url = granted(&fixture).await;
    let whole = content(0, 1, 0);
    send(&fixture.vault, &url, &[whole.slice(..100), whole.slice(100..)]).await.unwrap();
    let stored = stored_files(&fixture);
    assert_eq!(stored.len(), 1);
    assert_eq!(std::fs::read(fixture.store_path().join(&stored[0])).unwrap(), whole);
    let request = GrantRequest { server: SERVER, file: file(0, 1, 0) };
    assert!(fixture.vault.grant(PROCESS_SERVER, &request, at(4)).await.unwrap().stored);
    send(&fixture.vault, &url, &[whole]).await.expect("sent again, it is taken again");
    assert_eq!(stored_files(&fixture), stored);
}

#[tokio::test]
async fn what_is_not_as_granted_leaves_nothing() {
    let fixture = Fixture::new().await;
    let url = granted(&fixture).await;
    let whole = content(0, 1, 0);
    let longer = [whole.clone(), "x".into()];
    let refusal = |result: Result<(), VaultError>| match result.unwrap_err() {
        VaultError::Upload(refusal) => refusal,
        other => panic!("{other}"),
    };
    let cut = refusal(send(&fixture.vault, &url, &[whole.slice(..50)]).await);
    assert!(matches!(cut, UploadRefusal::CutOff { received: 50, .. }), "{cut}");
    for place in [9, 200, whole.len() - 100, whole.len() - 1] {
        let mut altered = whole.to_vec();
        altered[place] ^= 1;
        let damaged = refusal(send(&fixture.vault, &url, &[altered.into()]).await);
        assert!(matches!(damaged, UploadRefusal::Damaged { .. }), "byte {place}: {damaged}");
    }
    let long = refusal(send(&fixture.vault, &url, &longer).await);
    assert!(matches!(long, UploadRefusal::TooLong { .. }), "{long}");
    assert_eq!(stored_files(&fixture), Vec::<String>::new());
}

/// A file can be whole and yet of no use: another disk's, or encrypted with a key that the vault
/// does not have.
#[tokio::test]
async fn a_whole_file_that_is_not_the_granted_one_is_refused() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    let elsewhere = Files { vault: VaultId::new(9), ..Files::counted() };
    let other_key = Files { key: DiskKey::new([8; 32]), ..Files::counted() };
    for (whole, why) in [
        (content(1, 1, 0), "files were exchanged"),
        (content(0, 2, 0), "files were exchanged"),
        (content(0, 1, 1), "files were exchanged"),
        (elsewhere.content(SERVER, 0, 1, 0), "files were exchanged"),
        (other_key.content(SERVER, 0, 1, 0), "written with disk key"),
    ] {
        let request = GrantRequest { server: SERVER, file: describe(0, 1, 0, &whole) };
        let url = fixture.vault.grant(PROCESS_SERVER, &request, at(2)).await.unwrap().url;
        let error = send(&fixture.vault, &url, &[whole]).await.unwrap_err();
        assert_eq!((error.status(), error.code()), (422, "upload_damaged"));
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(stored_files(&fixture), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_nothing() {
    let fixture = Fixture::new().await;
    let url = granted(&fixture).await;
    let token = url.strip_prefix("/v1/objects/").unwrap();
    let pieces = [Ok(content(0, 1, 0).slice(..50)), Err(std::io::Error::other("the connection was reset"))];
    let broken = fixture.vault.receive(PROCESS_SERVER, token, futures::stream::iter(pieces), at(3)).await;
    assert_eq!(broken.unwrap_err().code(), "upload_cut_off");
    assert_eq!(stored_files(&fixture), Vec::<String>::new());
}

#[tokio::test]
async fn grants_hold_for_an_hour_and_for_one_process_server() {
    let fixture = Fixture::new().await;
    let url = granted(&fixture).await;
    let token = url.strip_prefix("/v1/objects/").unwrap();
    let body = || futures::stream::iter([Ok::<_, std::io::Error>(content(0, 1, 0))]);
    let foreign = fixture.vault.receive("hall-3", token, body(), at(3)).await.unwrap_err();
    assert_eq!((foreign.status(), foreign.code()), (403, "grant_refused"));
    assert!(foreign.to_string().contains("hall-3"), "{foreign}");
    let late = fixture.vault.receive(PROCESS_SERVER, token, body(), at(3602)).await.unwrap_err();
    assert_eq!((late.status(), late.code()), (403, "grant_expired"));
    let forged = fixture.vault.receive(PROCESS_SERVER, &token[1..], body(), at(3)).await.unwrap_err();
    assert_eq!(forged.code(), "grant_refused");
    fixture.vault.receive(PROCESS_SERVER, token, body(), at(3601)).await.unwrap();
}

#[tokio::test]
async fn unknown_disks_get_no_grant() {
    let fixture = Fixture::new().await;
    let request = GrantRequest { server: SERVER, file: file(0, 1, 0) };
    let error = fixture.vault.grant(PROCESS_SERVER, &request, at(2)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (404, "server_unknown"));
    register(&fixture.vault, SERVER, "db1", 1).await;
    let error = fixture.vault.grant(PROCESS_SERVER, &request, at(2)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (404, "disk_unknown"));
}

#[tokio::test]
async fn what_a_killed_vault_was_receiving_is_removed_when_it_opens() {
    let fixture = Fixture::new().await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    take(&fixture.vault, 10, &[(0, 1, 1)]).await;
    let before = tree(&fixture.store_path());
    let whole = stored_files(&fixture).remove(0);
    std::fs::write(fixture.store_path().join(format!("{whole}#1")), "half").unwrap();
    let fixture = fixture.reopen(None).await;
    assert_eq!(tree(&fixture.store_path()), before);
}

/// Without it an acknowledged file may be gone after a power cut.
#[tokio::test]
async fn the_local_store_syncs() {
    let fixture = Fixture::new().await;
    assert!(format!("{:?}", fixture.vault.store()).contains("fsync: true"));
}
