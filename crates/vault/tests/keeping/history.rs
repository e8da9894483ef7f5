//! Random histories with points, thinning, merging, volumes and crashes, against a model.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat_model::{DiskNumber, PointId, PointKind};
use lifeboat_vault::catalog::StoredFile;
use lifeboat_vault::rebuild::{CheckFiles, rebuild_catalog};
use lifeboat_vault::{SystemRandomness, Vault, VaultError};
use lifeboat_volume::FrameCache;
use proptest::prelude::*;

use crate::site::*;

#[derive(Clone, Debug)]
enum Step {
    /// Some points, one after the other.
    Points(Vec<(u16, u8, Vec<Vec<Change>>)>),
    Thin,
    Merge,
    /// Thin and merge; at the step of this number everything ends, as in a crash.
    Crash(usize),
    /// As [`Step::Crash`], and then the catalog is lost.
    Lose(usize),
    /// Opens the point at this place of the list.
    Open(usize),
    Close,
}

fn change() -> impl Strategy<Value = Change> {
    (0..DISK_BLOCKS, prop_oneof![3 => 1u64..4, 1 => 1u64..100], 0u64..1000).prop_map(
        |(first, blocks, seed)| {
            let seed = if seed % 7 == 0 { 0 } else { seed };
            Change { first, blocks: blocks.min(DISK_BLOCKS - first), seed }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let parts = prop::collection::vec(prop::collection::vec(change(), 0..4), 0..3);
    let points = prop::collection::vec((20u16..300, 0u8..10, parts), 1..12);
    prop_oneof![
        6 => points.prop_map(Step::Points),
        2 => Just(Step::Thin),
        3 => Just(Step::Merge),
        3 => (0usize..40).prop_map(Step::Crash),
        1 => (0usize..40).prop_map(Step::Lose),
        1 => any::<usize>().prop_map(Step::Open),
        1 => Just(Step::Close),
    ]
}

struct Open {
    point: PointId,
    files: Vec<StoredFile>,
}

struct History {
    site: Site,
    now: i64,
    open: Option<Open>,
}

const VOLUME: &str = "00000000000000aa";

impl History {
    async fn new() -> Self {
        let mut site = Site::new(2).await;
        site.set_policy(&policy(&[(900, None), (3600, Some(600)), (3 * 3600, Some(1200))])).await;
        let base = vec![vec![vec![Change { first: 0, blocks: 250, seed: 5 }]]; 2];
        site.commit(0, PointKind::Crash, &base).await;
        Self { site, now: 0, open: None }
    }

    async fn run(mut self, step: Step) -> Self {
        match step {
            Step::Points(points) => {
                for (seconds, kind, parts) in points {
                    self.now += i64::from(seconds);
                    let kind = if kind == 0 { PointKind::Filesystem } else { PointKind::Crash };
                    // The second disk has fewer changes, and sometimes none.
                    let disks = [parts.clone(), parts.into_iter().skip(1).collect()];
                    self.site.commit(self.now, kind, &disks).await;
                }
            }
            Step::Thin => self.site.retention().thin(at(self.now)).await.unwrap(),
            Step::Merge => self.site.retention().merge(at(self.now)).await.unwrap(),
            Step::Crash(count) => self = self.crash(count, false).await,
            Step::Lose(count) => self = self.crash(count, true).await,
            Step::Open(place) => {
                if self.open.is_none() {
                    let listed = self.site.listed().await;
                    let point = listed[place % listed.len()];
                    self.site.open_volume(VOLUME, point, self.now).await;
                    let (_, files) = self.site.vault.files_of_point(point, DiskNumber(0)).await.unwrap();
                    self.open = Some(Open { point, files });
                }
            }
            Step::Close => {
                self.site.close_volume(VOLUME).await;
                self.open = None;
            }
        }
        self
    }

    async fn crash(mut self, count: usize, lose: bool) -> Self {
        let left = Arc::new(AtomicUsize::new(count));
        let at_step = Arc::new(move |_: &'static str| {
            let is_left = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            is_left.map(drop).map_err(|_| VaultError::Invalid("the test ends it here".into()))
        });
        let retention = self.site.retention_with(at_step);
        let ended = match retention.thin(at(self.now)).await {
            Ok(()) => retention.merge(at(self.now)).await,
            error => error,
        };
        drop((retention, ended));
        if lose {
            let path = self.site.state();
            self.site.vault.close().await;
            let Site { dir, vault, settings, epochs, images, points, times, newest } = self.site;
            drop(vault);
            rebuild_catalog(&path, None, CheckFiles::Digests, at(self.now)).await.unwrap();
            let vault = Vault::open(&path, None, Arc::new(SystemRandomness), at(self.now)).await.unwrap();
            let vault = Arc::new(vault);
            self.site = Site { dir, vault, settings, epochs, images, points, times, newest };
            // Open volumes are lost with the catalog.
            self.open = None;
        } else {
            self.site = self.site.reopen(at(self.now)).await;
        }
        self
    }

    async fn check(&self) {
        self.site.check().await;
        if let Some(open) = &self.open {
            assert!(self.site.listed().await.contains(&open.point), "an open volume's point is kept");
            let cache = FrameCache::new(1 << 20);
            let disk = DiskNumber(0);
            let read =
                read_disk(&self.site.vault, &self.site.state(), disk, &open.files, &cache).await.unwrap();
            let image: Vec<u8> = (0..)
                .zip(&self.site.points[&open.point][0])
                .flat_map(|(block, seed)| block_content(*seed, block))
                .collect();
            assert!(read == image, "the open volume reads as it did");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_retained_point_holds_what_it_held_when_it_was_taken(steps in prop::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut history = History::new().await;
            for step in steps {
                history = history.run(step).await;
                history.check().await;
            }
            // Whatever was interrupted is put right before the next change, manifests too.
            history.site.retention().thin(at(history.now)).await.unwrap();
            let report = crate::verification::verify(&history.site).await;
            prop_assert!(report.good, "{:#?}", report);
            // In the end nothing is left over, whatever was interrupted.
            history = history.run(Step::Close).await;
            let retention = history.site.retention();
            for _ in 0..3 {
                retention.thin(at(history.now)).await.unwrap();
                retention.merge(at(history.now)).await.unwrap();
            }
            retention.thin(at(history.now)).await.unwrap();
            history.check().await;
            drop(retention);
            // A new process looks for orphans at once.
            let retention = history.site.retention();
            retention.merge(at(history.now)).await.unwrap();
            retention.thin(at(history.now)).await.unwrap();
            history.check().await;
            history.site.check_nothing_left_over().await;
            Ok(())
        })?;
    }
}
