//! The order of things: one random step after the other, then peace.

use std::path::Path;
use std::time::Duration;

use lifeboat_api::OpenVolume;
use lifeboat_model::ServerId;
use lifeboat_process_server::set_aside;
use lifeboat_vault::catalog::PointFilter;
use lifeboat_vault::rebuild::CheckFiles;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::agent::{Agent, policy};
use crate::content::Image;
use crate::faults::Faults;
use crate::line::{Clocks, Line, Log};
use crate::model::{Figures, Model, check_sentence};
use crate::recovery_site::RecoverySite;
use crate::site::Site;

mod fault;

/// Steps of a run before its faults stop.
pub const STEPS: usize = 260;

/// Rounds after the faults within which the copy must become equal.
const CONVERGE_ROUNDS: u32 = 1600;

pub struct World {
    agents: Vec<Agent>,
    pub(crate) line: Line,
}

/// One run: `steps` steps with the faults of the seed, then none.
pub fn run(seed: u64, steps: usize, log: Log) -> Figures {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let figures = runtime.block_on(async {
        let mut world = World::new(seed, dir.path(), log).await;
        for _ in 0..steps {
            world.step().await;
            world.line.check().await;
        }
        world.converge().await;
        world.line.model.figures
    });
    runtime.shutdown_background();
    figures
}

fn disk_images(faults: &Faults, random: &mut StdRng, next_value: &mut u32) -> Vec<Image> {
    let disks = if random.random_bool(0.6) { 2 } else { 1 };
    let mut images = Vec::new();
    for number in 0..disks {
        let blocks = if faults.large && number == 0 { 9_000 } else { random.random_range(65..700_u64) };
        let less = [0, 0, 512, 3584][random.random_range(0..4)];
        let mut image = Image::new(blocks * 4096 - less);
        let filled = if random.random_ratio(1, 10) { 0 } else { random.random_range(1..6) };
        for _ in 0..filled {
            let first = random.random_range(0..blocks);
            for block in first..(first + random.random_range(1..120)).min(blocks) {
                *next_value += 1;
                image.set(block, *next_value);
            }
        }
        images.push(image);
    }
    images
}

impl World {
    async fn new(seed: u64, dir: &Path, log: Log) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let faults = Faults::draw(&mut random);
        let mut next_value = 0;
        let servers = if faults.two_servers { 2 } else { 1 };
        let mut agents = Vec::new();
        for number in 1..=servers {
            let images = disk_images(&faults, &mut random, &mut next_value);
            let server = ServerId::new(0xa000_0000_0000_0000 + number);
            let mut agent = Agent::new(&format!("agent {number}"), server, images, random.random());
            if random.random_bool(0.5) {
                agent.want(2);
            }
            agents.push(agent);
        }
        let wall = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let recovery = RecoverySite::new(dir.join("vault"), random.random(), wall).await;
        let sites = vec![Site::new(dir.join("site-0"), wall)];
        let mut line = Line {
            random,
            log,
            now: Duration::ZERO,
            faults,
            quiet: false,
            agents_cut_until: Duration::ZERO,
            vault_cut_until: Duration::ZERO,
            clocks: Clocks::default(),
            dir: dir.to_owned(),
            sites,
            current: 0,
            recovery,
            model: Model::default(),
            next_value,
            writer: 0,
        };
        line.advance(Duration::from_secs(1));
        line.note(format!("seed {seed}, {faults:?}"));
        Self { agents, line }
    }

    async fn step(&mut self) {
        match self.line.random.random_range(0..100) {
            0..40 => self.agents_go().await,
            40..55 => self.upload_some().await,
            55..65 => {
                let site = self.any_site();
                self.line.commit(site).await;
            }
            65..75 => {
                let agent = self.line.random.random_range(0..self.agents.len());
                self.agents[agent].guest_writes(&mut self.line);
            }
            75..82 => {
                let ms = [100, 1_000, 5_000, 30_000][self.line.random.random_range(0..4)];
                self.line.advance(Duration::from_millis(ms));
            }
            82..87 => self.retain().await,
            87..89 => self.reopen().await,
            89 => self.seldom_at_site().await,
            90..92 => self.use_volumes().await,
            _ => self.fault().await,
        }
        self.set_policies().await;
    }

    fn any_site(&mut self) -> usize {
        self.line.random.random_range(0..self.line.sites.len())
    }

    async fn agents_go(&mut self) {
        let agent = self.line.random.random_range(0..self.agents.len());
        for _ in 0..self.line.random.random_range(1..24) {
            if !self.agents[agent].go(&mut self.line).await {
                self.line.advance(Duration::from_millis(500));
            }
        }
    }

    async fn upload_some(&mut self) {
        let site = self.any_site();
        for _ in 0..self.line.random.random_range(1..4) {
            if !self.line.upload(site).await {
                break;
            }
        }
    }

    async fn seldom_at_site(&mut self) {
        let site = self.any_site();
        self.line.describe_untold(site).await;
        if let Some(gateway) = self.line.sites[site].gateway.clone() {
            let files = self.line.random.random_range(0..4);
            gateway.keep_stored_only(files).unwrap();
        }
    }

    /// New servers get the policy of the simulation.
    async fn set_policies(&mut self) {
        let Some(vault) = self.line.recovery.vault.clone() else { return };
        if self.line.recovery.store.is_hindered() {
            return;
        }
        for server in vault.catalog().servers().await.unwrap() {
            if server.policy != policy() {
                vault.set_policy(server.id, &policy()).await.unwrap();
            }
        }
    }

    async fn retain(&mut self) {
        if !self.line.faults.retention || self.line.recovery.vault.is_none() {
            return;
        }
        let crash = self.line.chance(self.line.faults.vault_crash, 250);
        let ends_at = self.line.random.random_range(0..16);
        let retention = match crash {
            true => self.line.recovery.retention_ending_at(ends_at).map(std::sync::Arc::new),
            false => self.line.recovery.retention.clone(),
        };
        let Some(retention) = retention else { return };
        let mut fault = self.line.draw_store_fault();
        if let Some(fault) = &mut fault {
            fault.call = self.line.random.random_range(0..40);
            if fault.kind == crate::store::FaultKind::Kill {
                fault.kind = crate::store::FaultKind::Lasting;
            }
        }
        let wall = self.line.vault_wall();
        let merge = self.line.random.random_bool(0.5);
        self.line.recovery.store.arm(fault);
        let before = retention.figures();
        let result = if merge { retention.merge(wall).await } else { retention.thin(wall).await };
        self.line.recovery.store.arm(None);
        let after = retention.figures();
        self.line.model.figures.merged += after.merged_files - before.merged_files;
        let what = if merge { "merge" } else { "thin" };
        self.line.note(format!(
            "retention: {what}, {after:?}, fault {fault:?}, ends {:?}",
            crash.then_some(ends_at)
        ));
        if let Err(error) = result {
            check_sentence(&error.to_string());
            self.line.note(format!("  retention: {error}"));
        }
        if crash {
            self.line.note("  the vault is killed");
            self.line.recovery.crash();
        }
    }

    /// Roles that are down come back, mostly.
    async fn reopen(&mut self) {
        let wall = self.line.vault_wall();
        if self.line.recovery.vault.is_none() {
            let fault =
                self.line.draw_store_fault().filter(|fault| fault.kind != crate::store::FaultKind::Kill);
            self.line.recovery.store.arm(fault);
            let opened = self.line.recovery.open(wall).await;
            self.line.recovery.store.arm(None);
            self.line
                .note(format!("the vault comes back: {:?}", opened.as_ref().err().map(ToString::to_string)));
            if opened.is_ok() {
                self.open_volumes_again().await;
            }
            if let Err(error) = opened {
                check_sentence(&error.to_string());
                self.line.recovery.crash();
                assert!(
                    fault.is_some()
                        || self.line.recovery.store.is_hindered()
                        || self.line.recovery.store.any_damage(),
                    "the vault does not open: {error}"
                );
            }
        }
        for site in 0..self.line.sites.len() {
            self.reopen_site(site);
        }
    }

    /// Somebody opens a volume, reads it, closes it.
    async fn use_volumes(&mut self) {
        if self.line.recovery.vault.is_none() || self.line.recovery.store.is_hindered() {
            return;
        }
        let open = self.line.model.volumes.len();
        let close = open == 2 || (open > 0 && self.line.random.random_bool(0.4));
        if !close {
            return self.open_volume().await;
        }
        let volume = self.line.model.volumes.swap_remove(self.line.random.random_range(0..open));
        self.line.note(format!("volume {} is read and closed", volume.id));
        self.line.read_volume(&volume).await;
        let wall = self.line.vault_wall();
        let volumes = self.line.recovery.volumes.as_ref().unwrap();
        volumes.close(&volume.id.to_string(), true, "the simulation", wall).await.unwrap();
    }

    async fn open_volume(&mut self) {
        let agent = self.line.random.random_range(0..self.agents.len());
        let server = self.agents[agent].server;
        let vault = self.line.recovery.vault.clone().unwrap();
        let points = vault.catalog().points(PointFilter::From(server, 0)).await.unwrap();
        if points.is_empty() {
            return;
        }
        let point = points[self.line.random.random_range(0..points.len())].id;
        let request = OpenVolume { point: Some(point.to_string()), read_only: true, ..OpenVolume::default() };
        let wall = self.line.vault_wall();
        self.line.recovery.store.arm(None);
        let volumes = self.line.recovery.volumes.as_ref().unwrap();
        match volumes.open(server, &request, "the simulation", wall).await {
            Ok(opened) => {
                self.line.note(format!("volume {} of point {point} is opened", opened.volume));
                let disks = self.line.open_disks(server, point).await;
                let volume = crate::model::OpenVolume { id: opened.volume, server, point, disks };
                self.line.model.volumes.push(volume);
                self.line.model.figures.volumes += 1;
            }
            Err(error) => {
                check_sentence(&error.to_string());
                assert!(self.line.recovery.store.any_damage(), "point {point} cannot be opened: {error}");
            }
        }
    }

    /// A vault that was down serves the volumes again, over the files of now.
    async fn open_volumes_again(&mut self) {
        let Some(volumes) = &self.line.recovery.volumes else { return };
        let listed: Vec<_> = volumes.list().await.unwrap().into_iter().map(|volume| volume.id).collect();
        for mut volume in std::mem::take(&mut self.line.model.volumes) {
            // A catalog that was made anew does not know of it.
            if listed.contains(&volume.id) {
                volume.disks = self.line.open_disks(volume.server, volume.point).await;
                self.line.model.volumes.push(volume);
            }
        }
    }

    fn reopen_site(&mut self, site: usize) {
        if self.line.sites[site].gateway.is_none() {
            let wall = self.line.wall(self.line.clocks.site_ms);
            self.line.sites[site].open(wall).unwrap();
            self.line.note(format!("process server {site} comes back"));
            self.line.take_events(site);
        }
    }

    /// Nothing goes wrong any more: the newest point must become what is on the disks.
    async fn converge(&mut self) {
        self.line.note("--- faults end");
        self.line.quiet = true;
        let originals = if self.line.faults.two_servers { 2 } else { 1 };
        self.agents.truncate(originals);
        self.line.clocks = Clocks::default();
        self.line.agents_cut_until = Duration::ZERO;
        self.line.vault_cut_until = Duration::ZERO;
        self.line.recovery.store.set_outage(false);
        self.line.recovery.store.set_full(false);
        self.line.recovery.store.repair();
        for agent in &mut self.agents {
            agent.pause(false);
            agent.want(2);
        }
        self.reopen().await;
        self.give_all_back().await;
        for round in 0..CONVERGE_ROUNDS {
            self.put_spools_right();
            for agent in &mut self.agents {
                for _ in 0..40 {
                    if !agent.go(&mut self.line).await {
                        break;
                    }
                }
            }
            for site in 0..self.line.sites.len() {
                self.line.describe_untold(site).await;
                while self.line.upload(site).await {}
                while self.line.commit(site).await {}
            }
            if round % 16 == 0 {
                self.retain().await;
                self.line.check().await;
                if self.is_equal().await {
                    self.line.check().await;
                    self.check_rebuild().await;
                    return;
                }
            }
            self.line.advance(Duration::from_secs(1));
        }
        let states: Vec<_> = self.agents.iter().map(Agent::state).collect();
        panic!("the copy does not become equal to its source: {states:?}");
    }

    /// The operator does what the events of damaged spools say.
    fn put_spools_right(&mut self) {
        let stuck = std::mem::take(&mut self.line.model.stuck);
        self.line.model.spool_damaged.extend(stuck);
        while let Some((site, server)) = self.line.model.spool_damaged.first().copied() {
            self.line.note(format!("the spool of {server} at process server {site} is set aside"));
            self.line.sites[site].gateway = None;
            let wall = self.line.wall(0);
            set_aside(&self.line.sites[site].path, server, wall).unwrap();
            self.line.model.acknowledged.retain(|place, _| (place.site, place.server) != (site, server));
            self.line.model.spool_damaged.remove(&(site, server));
            self.reopen_site(site);
        }
    }

    /// Whether the newest points have what is on the disks now.
    async fn is_equal(&self) -> bool {
        let Some(vault) = &self.line.recovery.vault else { return false };
        for agent in &self.agents {
            let newest = vault.catalog().points(PointFilter::Newest(agent.server, 1)).await.unwrap();
            let Some(newest) = newest.first() else { return false };
            let images = &self.line.model.points[&newest.id].images;
            let equal = images.len() == agent.wanted
                && agent.disks.iter().zip(images.values()).all(|(disk, image)| disk.image == **image);
            if !equal || !agent.follows_all() {
                return false;
            }
        }
        true
    }

    /// A rebuild from the store alone lists the same points.
    async fn check_rebuild(&mut self) {
        let mut listed = Vec::new();
        let vault = self.line.recovery.vault.clone().unwrap();
        for agent in &self.agents {
            listed.push(vault.catalog().points(PointFilter::From(agent.server, 0)).await.unwrap());
        }
        drop(vault);
        self.line.recovery.stop().await;
        let wall = self.line.vault_wall();
        let report = self.line.recovery.rebuild(CheckFiles::Digests, wall).await.unwrap();
        assert_eq!(report.refused, [], "a rebuild does not take everything");
        self.line.recovery.open(wall).await.unwrap();
        let vault = self.line.recovery.vault.clone().unwrap();
        for (agent, listed) in self.agents.iter().zip(listed) {
            let again = vault.catalog().points(PointFilter::From(agent.server, 0)).await.unwrap();
            let ids = |rows: &[lifeboat_vault::catalog::PointRow]| {
                rows.iter().map(|row| row.id).collect::<Vec<_>>()
            };
            assert_eq!(ids(&again), ids(&listed), "a rebuild gives another history");
        }
        self.line.check().await;
    }
}
