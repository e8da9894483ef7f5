//! What goes wrong in the world.

use std::time::Duration;

use bytes::Bytes;
use lifeboat_model::ServerId;
use lifeboat_vault::rebuild::CheckFiles;
use rand::Rng;

use super::World;
use crate::line::Clocks;
use crate::site::Site;

impl World {
    /// One of the seed's faults, perhaps.
    pub(super) async fn fault(&mut self) {
        let faults = self.line.faults;
        let agent = self.line.random.random_range(0..self.agents.len());
        match self.line.random.random_range(0..19) {
            0 if faults.agent_crash => {
                self.line.note(format!("{} is killed", self.agents[agent].label));
                self.agents[agent].start();
            }
            1 if faults.agent_reboot => {
                self.line.note(format!("{}'s machine starts anew", self.agents[agent].label));
                self.agents[agent].reboot(&mut self.line);
            }
            2 if faults.site_crash => {
                let site = self.any_site();
                self.line.crash_site(site);
            }
            3 if faults.site_lost => self.lose_site(),
            4 if faults.spool_damage => self.damage_spool(),
            5 if faults.vault_crash => {
                self.line.note("the vault is killed");
                self.line.recovery.crash();
            }
            6 if faults.store_full => {
                let full = self.line.random.random_bool(0.5);
                self.line.note(format!("the store is full: {full}"));
                self.line.recovery.store.set_full(full);
            }
            7 if faults.store_damage => self.damage_store(),
            8 if faults.partition => {
                let until = self.line.now + Duration::from_secs(self.line.random.random_range(1..60));
                match self.line.random.random_range(0..3) {
                    0 => self.line.agents_cut_until = until,
                    1 => self.line.vault_cut_until = until,
                    _ => {
                        let outage = self.line.random.random_bool(0.5);
                        self.line.recovery.store.set_outage(outage);
                    }
                }
                self.line.note(format!("partition until {until:?}"));
            }
            9 | 10 if faults.clocks => self.jump_clock(),
            11 if faults.catalog_lost => self.lose_catalog().await,
            12 if faults.clone && self.agents.len() < 3 => {
                let clone = self.agents[agent].clone_elsewhere(self.line.random.random());
                self.line.note(format!("{} appears", clone.label));
                self.agents.push(clone);
            }
            13 if faults.second_site => self.change_site(),
            14 if faults.resize => self.resize(agent),
            15 if faults.pause => {
                let paused = !self.agents[agent].paused;
                self.line.note(format!("{} paused: {paused}", self.agents[agent].label));
                self.agents[agent].pause(paused);
            }
            16 if faults.record_lost => {
                self.line.note(format!("{}'s record is lost", self.agents[agent].label));
                self.agents[agent].lose_record();
            }
            17 if faults.failover => self.fail_over(self.agents[agent].server).await,
            18 => {
                let most = self.agents[agent].disks.len();
                let disks = self.line.random.random_range(1..=most);
                self.line.note(format!("{} is to protect {disks} disks", self.agents[agent].label));
                self.agents[agent].want(disks);
            }
            _ => {}
        }
    }

    /// The process server and its spool are gone; another one takes its place.
    fn lose_site(&mut self) {
        let site = self.line.current;
        self.line.note(format!("process server {site} is lost with its spool"));
        self.line.sites[site].gateway = None;
        let path = self.line.dir.join(format!("site-after-{}", self.line.now.as_millis()));
        let wall = self.line.wall(self.line.clocks.site_ms);
        self.line.sites[site] = Site::new(path, wall);
        self.line.model.acknowledged.retain(|place, _| place.site != site);
        self.line.model.spool_damaged.retain(|(of, _)| *of != site);
    }

    /// The agents turn to another process server.
    fn change_site(&mut self) {
        let wall = self.line.wall(self.line.clocks.site_ms);
        if self.line.sites.len() == 1 {
            let path = self.line.dir.join("site-1");
            self.line.sites.push(Site::new(path, wall));
        }
        self.line.current = 1 - self.line.current;
        self.line.note(format!("the agents turn to process server {}", self.line.current));
    }

    fn damage_spool(&mut self) {
        let site = self.any_site();
        let files: Vec<_> = self.line.sites[site]
            .files()
            .into_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "hrl"))
            .collect();
        if files.is_empty() {
            return;
        }
        let path = &files[self.line.random.random_range(0..files.len())];
        let text = path.to_string_lossy().into_owned();
        let server = text.split('/').rev().nth(2).and_then(|name| name.parse::<ServerId>().ok()).unwrap();
        let mut content = std::fs::read(path).unwrap();
        match self.line.random.random_range(0..3) {
            0 => content.truncate(self.line.random.random_range(0..content.len())),
            _ => {
                let at = self.line.random.random_range(0..content.len());
                content[at] ^= 1 << self.line.random.random_range(0..8);
            }
        }
        self.line.note(format!("{text} is damaged"));
        std::fs::write(path, content).unwrap();
        self.line.model.spool_damaged.insert((site, server));
    }

    fn damage_store(&mut self) {
        if self.line.random.random_bool(0.5) {
            let repaired = self.line.recovery.store.repair();
            self.line.note(format!("{repaired} objects are put back"));
            return;
        }
        let names: Vec<_> =
            self.line.recovery.store.names().into_iter().filter(|name| name.ends_with(".hrl")).collect();
        if names.is_empty() {
            return;
        }
        let name = &names[self.line.random.random_range(0..names.len())];
        let mut content = self.line.recovery.store.content(name).unwrap().to_vec();
        let changed = match self.line.random.random_range(0..3) {
            0 => None,
            1 => Some(Bytes::from(content.split_off(content.len() / 2))),
            _ => {
                let at = self.line.random.random_range(0..content.len());
                content[at] ^= 1 << self.line.random.random_range(0..8);
                Some(content.into())
            }
        };
        self.line.note(format!("{name} is damaged: {:?} bytes", changed.as_ref().map(Bytes::len)));
        self.line.recovery.store.damage(name, changed);
    }

    fn jump_clock(&mut self) {
        const DAY_MS: i64 = 86_400_000;
        let most =
            [5_000, 120_000, 3_600_000, 3 * DAY_MS, 2_000 * DAY_MS][self.line.random.random_range(0..5)];
        let to = self.line.random.random_range(-most..=most);
        match self.line.random.random_range(0..4) {
            0 => self.line.clocks.agent_ms = to,
            1 => self.line.clocks.site_ms = to,
            2 => self.line.clocks.vault_ms = to,
            // All roles on one machine.
            _ => self.line.clocks = Clocks { agent_ms: to, site_ms: to, vault_ms: to },
        }
        self.line.note(format!("a clock jumps: {:?}", self.line.clocks));
        self.line.advance(Duration::ZERO);
    }

    fn resize(&mut self, agent: usize) {
        let disk = self.line.random.random_range(0..self.agents[agent].disks.len());
        let blocks = self.agents[agent].disks[disk].image.len();
        let shrinks = self.line.random.random_ratio(1, 3);
        let blocks = if shrinks { blocks / 2 + 33 } else { blocks + self.line.random.random_range(1..200) };
        let less = [0, 512][self.line.random.random_range(0..2)];
        self.line.note(format!(
            "disk {disk} of {} gets {blocks} blocks less {less} bytes",
            self.agents[agent].label
        ));
        self.agents[agent].resize(disk, blocks * 4096 - less);
    }

    /// The catalog is lost and made anew from the store alone.
    async fn lose_catalog(&mut self) {
        if self.line.recovery.store.any_damage() || self.line.recovery.store.is_hindered() {
            return;
        }
        self.line.recovery.stop().await;
        let wall = self.line.vault_wall();
        let check = if self.line.random.random_bool(0.5) { CheckFiles::Sizes } else { CheckFiles::Digests };
        let report = self.line.recovery.rebuild(check, wall).await.unwrap();
        self.line.note(format!(
            "the catalog is made anew: {} points, refused {:?}",
            report.points, report.refused
        ));
        self.line.recovery.open(wall).await.unwrap();
        self.open_volumes_again().await;
    }
}
