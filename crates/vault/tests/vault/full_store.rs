//! A store without room. Needs the right to mount.

use std::path::Path;
use std::process::Command;

use lifeboat_vault::Store;
use lifeboat_wire::process_server::GrantRequest;
use rand::{Rng, SeedableRng};

use crate::support::*;

/// A file system of four mebibytes, unmounted when dropped.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(place: &'a Path) -> Self {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "lifeboat-test"]).arg(place).output();
        let mounted = mounted.unwrap();
        assert!(mounted.status.success(), "tests run as root, who may mount: {mounted:?}");
        Self(place)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_full_store_refuses_with_a_sentence_and_goes_on_when_there_is_room() {
    let place = tempfile::tempdir().unwrap();
    let _small = Small::mount(place.path());
    let fixture = Fixture::with_store(Store::local(place.path()).unwrap()).await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    let ballast = place.path().join("ballast");
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let mut frame = || (0..64 * 4096).map(|_| random.random()).collect::<Vec<u8>>();
    let frames: Vec<_> = (0..8).map(|_| frame()).collect();
    let whole = Files::counted().with_frames(SERVER, 0, 1, 0, &frames);
    let file = describe(0, 1, 0, &whole);
    let request = GrantRequest { server: SERVER, file: file.clone() };
    let url = fixture.vault.grant(PROCESS_SERVER, &request, at(2)).await.unwrap().url;
    let before = tree(place.path());

    std::fs::write(&ballast, vec![1; 3 << 20]).unwrap();
    let error = send(&fixture.vault, &url, std::slice::from_ref(&whole)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (507, "store_full"));
    assert!(error.to_string().contains("make room"), "{error}");
    let error = fixture.vault.grant(PROCESS_SERVER, &request, at(2)).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (507, "store_full"), "it is not even sent: {error}");
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(tree(place.path()), before, "nothing is left of the upload");

    send(&fixture.vault, &url, &[whole]).await.unwrap();
    let mut point = commit(SERVER, 10, &[(0, 1, 0)]);
    point.seal.disks[0].parts = 1;
    point.files = vec![file];
    let free = fixture.vault.store().free_bytes().unwrap();
    std::fs::write(&ballast, vec![1; usize::try_from(free).unwrap()]).unwrap();
    let error = fixture.vault.commit_point(PROCESS_SERVER, &point, at(11)).await.unwrap_err();
    assert_eq!(
        (error.status(), error.code()),
        (507, "store_full"),
        "there is no room for the manifest: {error}"
    );
    assert!(listed(&fixture.vault, SERVER).await.is_empty());
    std::fs::remove_file(&ballast).unwrap();
    fixture.vault.commit_point(PROCESS_SERVER, &point, at(12)).await.unwrap();
    check_all_points(&fixture.vault).await;
}
