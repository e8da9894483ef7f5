//! The store fails at every call that the vault makes, before and after its effect.

use std::sync::Arc;

use lifeboat_model::DiskNumber;
use lifeboat_vault::rebuild::{CheckFiles, rebuild_catalog};
use lifeboat_vault::{Store, Vault};
use proptest::prelude::*;

use crate::faulty_store::{Fails, FaultyStore};
use crate::support::*;

fn store_of(faulty: &Arc<FaultyStore>) -> Store {
    Store::new(faulty.clone(), "the faulty store")
}

/// Begins a commit whose store fails from one call on. Says whether it did.
async fn commit_with_fault(call: u64, fails: Fails, reopens: bool) -> bool {
    let faulty = FaultyStore::new();
    let fixture = Fixture::with_store(store_of(&faulty)).await;
    register(&fixture.vault, SERVER, "db1", 0).await;
    take(&fixture.vault, 10, &[(0, 1, 1)]).await;
    let second = commit(SERVER, 20, &[(0, 2, 2)]);
    faulty.fail_from(call, fails);
    let begun = async {
        upload_all(&fixture.vault, &second).await?;
        fixture.vault.commit_point(PROCESS_SERVER, &second, at(21)).await
    }
    .await;
    let has_failed = faulty.has_failed();
    faulty.heal();
    assert_eq!(begun.is_err(), has_failed, "a failure of the store is told: {begun:?}");
    if let Err(error) = begun {
        assert!(error.can_retry(), "{error}");
    }
    let fixture = if reopens { fixture.reopen(Some(store_of(&faulty))).await } else { fixture };
    check_all_points(&fixture.vault).await;
    upload_all(&fixture.vault, &second).await.unwrap();
    fixture.vault.commit_point(PROCESS_SERVER, &second, at(50)).await.unwrap();
    let third = commit(SERVER, 60, &[(0, 3, 1)]);
    upload_all(&fixture.vault, &third).await.unwrap();
    fixture.vault.commit_point(PROCESS_SERVER, &third, at(61)).await.unwrap();
    let points = listed(&fixture.vault, SERVER).await;
    assert_eq!(points, [point(SERVER, 10), point(SERVER, 20), point(SERVER, 60)]);
    check_all_points(&fixture.vault).await;
    rebuilt_is_the_same(fixture, &faulty).await;
    has_failed
}

async fn rebuilt_is_the_same(fixture: Fixture, faulty: &Arc<FaultyStore>) {
    let state = fixture.state();
    fixture.vault.close().await;
    let former = rows(&state).await;
    drop(fixture.vault);
    let report =
        rebuild_catalog(&state, Some(store_of(faulty)), CheckFiles::Digests, at(5000)).await.unwrap();
    assert_eq!(report.refused, []);
    assert_eq!(rows(&state).await, former);
}

#[tokio::test]
async fn a_commit_goes_on_after_a_failure_of_the_store_at_any_call() {
    for (fails, reopens) in
        [(Fails::Before, false), (Fails::After, false), (Fails::Before, true), (Fails::After, true)]
    {
        let mut call = 0;
        while commit_with_fault(call, fails, reopens).await {
            call += 1;
        }
        assert!(call >= 5, "the store was called only {call} times");
    }
}

/// A manifest that the store took is the history, also when its writer was told otherwise: no other
/// point takes its place.
#[tokio::test]
async fn what_the_store_took_is_not_overtaken() {
    let mut refused = 0;
    for call in 0.. {
        let faulty = FaultyStore::new();
        let fixture = Fixture::with_store(store_of(&faulty)).await;
        register(&fixture.vault, SERVER, "db1", 0).await;
        take(&fixture.vault, 10, &[(0, 1, 1)]).await;
        let (first, other) = (commit(SERVER, 20, &[(0, 2, 1)]), commit(SERVER, 25, &[(0, 2, 1)]));
        upload_all(&fixture.vault, &first).await.unwrap();
        faulty.fail_from(call, Fails::After);
        let begun = fixture.vault.commit_point(PROCESS_SERVER, &first, at(21)).await;
        faulty.heal();
        if begun.is_ok() {
            break;
        }
        if let Err(error) = fixture.vault.commit_point(PROCESS_SERVER, &other, at(26)).await {
            assert_eq!(error.code(), "other_history", "{error}");
            fixture.vault.commit_point(PROCESS_SERVER, &first, at(27)).await.unwrap();
            refused += 1;
        }
        assert_eq!(listed(&fixture.vault, SERVER).await.len(), 2);
        rebuilt_is_the_same(fixture, &faulty).await;
    }
    assert_eq!(refused, 1, "one call stores the manifest");
}

/// A key that a process server has is in the store: files that are encrypted with it can be read
/// after the catalog is lost.
#[tokio::test]
async fn no_key_is_handed_out_before_the_store_has_it() {
    for call in 0.. {
        let faulty = FaultyStore::new();
        let fixture = Fixture::with_store(store_of(&faulty)).await;
        faulty.fail_from(call, Fails::Before);
        let describe = description("db1", "/dev/sda");
        let disk = DiskNumber(0);
        let registered = fixture.vault.register_disk(PROCESS_SERVER, SERVER, disk, &describe, at(1)).await;
        let has_failed = faulty.has_failed();
        faulty.heal();
        assert_eq!(registered.is_err(), has_failed);
        let key =
            fixture.vault.register_disk(PROCESS_SERVER, SERVER, disk, &describe, at(2)).await.unwrap().key;
        let state = fixture.state();
        fixture.vault.close().await;
        drop(fixture.vault);
        rebuild_catalog(&state, Some(store_of(&faulty)), CheckFiles::Sizes, at(5)).await.unwrap();
        let vault = Vault::open(&state, Some(store_of(&faulty)), Counted::from(1000), at(6)).await.unwrap();
        let again = vault.register_disk(PROCESS_SERVER, SERVER, disk, &describe, at(7)).await.unwrap().key;
        assert_eq!(again, key);
        if !has_failed {
            assert!(call >= 2, "the store was called only {call} times");
            break;
        }
    }
}

/// What happens to a vault.
#[derive(Clone, Debug)]
enum Step {
    /// The next point, with so many parts a disk; the store fails at a call, if any.
    Point {
        parts: u32,
        fault: Option<(u64, Fails)>,
    },
    /// The newest point again.
    Repeat,
    /// A point that skips an epoch.
    Gap,
    AddDisk,
    Reopen,
    /// The catalog is made anew from the store.
    Rebuild,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fails = prop_oneof![Just(Fails::Before), Just(Fails::After)];
    let step = prop_oneof![
        6 => (0_u32..3, prop::option::of((0_u64..12, fails)))
            .prop_map(|(parts, fault)| Step::Point { parts, fault }),
        1 => Just(Step::Repeat),
        1 => Just(Step::Gap),
        1 => Just(Step::AddDisk),
        1 => Just(Step::Reopen),
        1 => Just(Step::Rebuild),
    ];
    prop::collection::vec(step, 1..16)
}

/// A vault and what a process server knows of it.
struct Model {
    faulty: Arc<FaultyStore>,
    fixture: Fixture,
    epochs: Vec<u64>,
    seconds: i64,
    /// Sealed and not acknowledged yet; committed before anything else, like a spool does.
    pending: Option<lifeboat_wire::process_server::CommitPoint>,
    acknowledged: Vec<lifeboat_model::PointId>,
    newest: Option<lifeboat_wire::process_server::CommitPoint>,
}

impl Model {
    async fn new() -> Self {
        let faulty = FaultyStore::new();
        let fixture = Fixture::with_store(store_of(&faulty)).await;
        register(&fixture.vault, SERVER, "db1", 0).await;
        let (pending, newest) = (None, None);
        Self { faulty, fixture, epochs: vec![0], seconds: 10, pending, acknowledged: Vec::new(), newest }
    }

    fn seal(&mut self, parts: u32, by: u64) -> lifeboat_wire::process_server::CommitPoint {
        self.seconds += 1;
        let disks: Vec<_> =
            (0_u16..).zip(&self.epochs).map(|(disk, epoch)| (disk, epoch + by, parts)).collect();
        commit(SERVER, self.seconds, &disks)
    }

    async fn commit_pending(&mut self) {
        let Some(pending) = self.pending.clone() else { return };
        let committed = async {
            upload_all(&self.fixture.vault, &pending).await?;
            self.fixture.vault.commit_point(PROCESS_SERVER, &pending, at(self.seconds)).await
        };
        if committed.await.is_ok() {
            self.acknowledged.push(pending.seal.point);
            self.epochs.iter_mut().for_each(|epoch| *epoch += 1);
            self.newest = self.pending.take();
        }
    }

    async fn step(mut self, step: Step) -> Self {
        match step {
            Step::Point { parts, fault } => {
                self.commit_pending().await;
                assert!(self.pending.is_none(), "without a fault a commit succeeds");
                self.pending = Some(self.seal(parts, 1));
                if let Some((call, fails)) = fault {
                    self.faulty.fail_from(call, fails);
                }
                self.commit_pending().await;
                self.faulty.heal();
            }
            Step::Repeat => {
                if let Some(newest) = &self.newest {
                    let receipt =
                        self.fixture.vault.commit_point(PROCESS_SERVER, newest, at(900)).await.unwrap();
                    assert_eq!(receipt.point, newest.seal.point);
                }
            }
            Step::Gap => {
                self.commit_pending().await;
                let gap = self.seal(0, 2);
                let error = self.fixture.vault.commit_point(PROCESS_SERVER, &gap, at(self.seconds)).await;
                assert_eq!(error.unwrap_err().code(), "other_history");
            }
            Step::AddDisk => {
                self.commit_pending().await;
                register(&self.fixture.vault, SERVER, "db1", u16::try_from(self.epochs.len()).unwrap()).await;
                self.epochs.push(0);
            }
            Step::Reopen => self.fixture = self.fixture.reopen(Some(store_of(&self.faulty))).await,
            Step::Rebuild => {
                let state = self.fixture.state();
                let Fixture { dir, vault } = self.fixture;
                vault.close().await;
                drop(vault);
                let store = || Some(store_of(&self.faulty));
                let report = rebuild_catalog(&state, store(), CheckFiles::Digests, at(5000)).await.unwrap();
                assert_eq!(report.refused, []);
                let vault = Vault::open(&state, store(), Counted::from(1000), at(900)).await.unwrap();
                self.fixture = Fixture { dir, vault };
            }
        }
        self
    }

    /// Everything acknowledged is there, in order; at most the pending point is there besides.
    async fn check(&self) {
        let listed = listed(&self.fixture.vault, SERVER).await;
        let (known, more) = listed.split_at(self.acknowledged.len().min(listed.len()));
        assert_eq!(known, self.acknowledged);
        let pending = self.pending.as_ref().map(|pending| pending.seal.point);
        assert!(more.is_empty() || more == pending.as_slice(), "{more:?} instead of {pending:?}");
        check_all_points(&self.fixture.vault).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_acknowledged_points_stay_and_listed_points_are_whole(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut model = Model::new().await;
            for step in steps {
                model = model.step(step).await;
                model.check().await;
            }
        });
    }
}
