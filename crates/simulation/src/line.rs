//! Everything between the roles: what agents ask of it, and what becomes of that on the way.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lifeboat_agent::engine::{Failure, OpenEpoch};
use lifeboat_model::{BlockDigest, DiskNumber, PointId, ServerId};
use lifeboat_process_server::{Gateway, LinkError, Refusal, WriterClaim};
use lifeboat_vault::VolumesError;
use lifeboat_volume::PointDisk;
use lifeboat_wire::agent::{DescribeDisk, DigestRequest, DiskState, SealPoint};
use lifeboat_wire::process_server;
use rand::Rng;
use rand::rngs::StdRng;

use crate::content::part_stream;
use crate::faults::Faults;
use crate::model::{Model, PartPlace, check_sentence};
use crate::recovery_site::RecoverySite;
use crate::site::{self, Site, Written};

mod to_vault;

/// When the simulated world begins.
const BEGIN_SECONDS: i64 = 1_800_000_000;

/// What happened, for people.
pub type Log = Arc<Mutex<Vec<String>>>;

/// How the clocks of the roles differ from the true time, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clocks {
    pub agent_ms: i64,
    pub site_ms: i64,
    pub vault_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Good,
    NotSent,
    AnswerLost,
}

/// Everything but the agents.
pub struct Line {
    pub random: StdRng,
    pub log: Log,
    pub now: Duration,
    pub faults: Faults,
    /// Nothing goes wrong any more.
    pub quiet: bool,
    pub agents_cut_until: Duration,
    pub vault_cut_until: Duration,
    pub clocks: Clocks,
    pub dir: PathBuf,
    pub sites: Vec<Site>,
    /// Which of them the agents talk to.
    pub current: usize,
    pub recovery: RecoverySite,
    pub model: Model,
    pub next_value: u32,
    /// The life of the agent whose turn it is.
    pub writer: u64,
}

impl Line {
    pub fn note(&self, what: impl Into<String>) {
        let what = what.into().replace(&self.dir.display().to_string(), "DIR");
        self.log.lock().unwrap().push(format!("{:>9.1}s {what}", self.now.as_secs_f64()));
    }

    pub fn wall(&self, offset_ms: i64) -> Timestamp {
        let now = SignedDuration::try_from(self.now).unwrap() + SignedDuration::from_millis(offset_ms);
        Timestamp::from_second(BEGIN_SECONDS).unwrap() + now
    }

    pub fn vault_wall(&self) -> Timestamp {
        self.wall(self.clocks.vault_ms)
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        let wall = self.vault_wall();
        self.recovery.store.set_wall(Duration::from_millis(u64::try_from(wall.as_millisecond()).unwrap()));
    }

    pub fn chance(&mut self, wanted: bool, in_1000: u32) -> bool {
        wanted && !self.quiet && self.random.random_ratio(in_1000, 1000)
    }

    pub fn value(&mut self) -> u32 {
        self.next_value += 1;
        self.next_value
    }

    fn fate(&mut self, cut: bool) -> Fate {
        if cut {
            return Fate::NotSent;
        }
        if self.chance(self.faults.line, 80) {
            return if self.random.random_bool(0.5) { Fate::NotSent } else { Fate::AnswerLost };
        }
        Fate::Good
    }

    fn agents_fate(&mut self) -> Fate {
        let cut = self.now < self.agents_cut_until;
        self.fate(cut)
    }

    fn gateway(&self) -> Result<Arc<Gateway>, Failure> {
        self.sites[self.current]
            .gateway
            .clone()
            .ok_or_else(|| Failure::Away("the process server is down".into()))
    }

    /// The process server is killed.
    pub fn crash_site(&mut self, site: usize) {
        self.note(format!("process server {site} is killed"));
        self.sites[site].gateway = None;
    }

    /// What an agent makes of a refusal that came over HTTP.
    fn judge(&mut self, what: &str, refusal: &Refusal) -> Failure {
        let message = refusal.to_string();
        check_sentence(&message);
        self.note(format!("  {what} refused: {message}"));
        match refusal.status() {
            409 | 404 => Failure::Conflict(message),
            408 | 429 | 500.. => Failure::Away(message),
            _ => Failure::Refused(message),
        }
    }

    // The agent's requests.

    pub async fn describe(
        &mut self,
        server: ServerId,
        disk: DiskNumber,
        described: &DescribeDisk,
    ) -> Result<DiskState, Failure> {
        let DescribeDisk { description, writer, follows, attempt, heard } = described;
        let claim = WriterClaim { writer: *writer, follows: *follows, attempt: *attempt, heard: *heard };
        let fate = self.agents_fate();
        if fate == Fate::NotSent {
            return Err(Failure::Away("cut off".into()));
        }
        let gateway = self.gateway()?;
        let known = gateway.knows_disk(server, disk);
        let commits = gateway.commits(server);
        let registration = match self.register(server, disk, description).await {
            Ok(registration) => Some((registration, commits)),
            Err(error) if known && error.retry_helps() => None,
            Err(error) => return Err(self.judge("describe", &Refusal::Vault(error))),
        };
        let wall = self.wall(self.clocks.site_ms);
        let described = gateway.describe_disk(server, disk, description, Some(&claim), registration, wall);
        self.take_events(self.current);
        let state = match described {
            Ok(state) => state,
            Err(refusal) => return Err(self.judge("describe", &refusal)),
        };
        self.note(format!(
            "  disk {disk} of {server} stands at epoch {}, part {}, sealed {:?}",
            state.epoch, state.next_part, state.sealed
        ));
        match fate {
            Fate::AnswerLost => Err(Failure::Away("the answer was lost".into())),
            _ => Ok(state),
        }
    }

    /// Sends one part; durable when this is well.
    pub fn part(&mut self, server: ServerId, open: OpenEpoch, messages: &[Vec<u8>]) -> Result<(), Failure> {
        let stream = part_stream(messages);
        let fate = self.agents_fate();
        if fate == Fate::NotSent {
            return Err(Failure::Away("cut off".into()));
        }
        let gateway = self.gateway()?;
        if self.chance(self.faults.site_crash, 10) {
            // In the middle of the file, or just before it gets its name.
            if let Ok(ticket) = site::begin(&gateway, (server, self.writer), open, &mut self.random) {
                let end = self.random.random_range(0..=stream.len());
                let _ = site::write(&ticket, &stream[..end], &mut self.random);
            }
            drop(gateway);
            self.crash_site(self.current);
            return Err(Failure::Away("the process server was killed".into()));
        }
        if self.chance(self.faults.streams, 30) {
            let end = self.random.random_range(0..stream.len());
            self.note(format!(
                "  part {}-{} of disk {} is cut after {end} bytes",
                open.epoch, open.part, open.disk
            ));
            match site::receive(&gateway, (server, self.writer), open, &stream[..end], &mut self.random) {
                Written::Refused(refusal) => drop(self.judge("cut part", &refusal)),
                Written::Durable(..) => {
                    panic!("a part that was cut after {end} of {} bytes counts", stream.len())
                }
            }
            return Err(Failure::Away("the stream was cut".into()));
        }
        let written = if self.chance(self.faults.streams, 20) {
            self.overtaken(&gateway, server, open, &stream)
        } else {
            site::receive(&gateway, (server, self.writer), open, &stream, &mut self.random)
        };
        let summary = match written {
            Written::Durable(summary) => summary,
            Written::Refused(refusal) => return Err(self.judge("part", &refusal)),
        };
        let place =
            PartPlace { site: self.current, server, disk: open.disk, epoch: open.epoch, part: open.part };
        self.model.acknowledged.insert(place, summary.digest);
        if self.chance(self.faults.streams, 30) {
            match site::receive(&gateway, (server, self.writer), open, &stream, &mut self.random) {
                Written::Refused(refusal) => {
                    assert_eq!(refusal.status(), 409, "a part sent twice: {refusal}");
                }
                Written::Durable(..) => panic!("a part was taken twice"),
            }
        }
        if self.chance(self.faults.site_crash, 10) {
            drop(gateway);
            self.crash_site(self.current);
            return Err(Failure::Away("the process server was killed".into()));
        }
        match fate {
            Fate::AnswerLost => {
                self.note(format!(
                    "  the receipt of part {}-{} of disk {} is lost",
                    open.epoch, open.part, open.disk
                ));
                Err(Failure::Away("the receipt was lost".into()))
            }
            _ => Ok(()),
        }
    }

    /// An earlier connection with the same part is still there, and ends after the later one began.
    fn overtaken(&mut self, gateway: &Gateway, server: ServerId, open: OpenEpoch, stream: &[u8]) -> Written {
        let earlier = match site::begin(gateway, (server, self.writer), open, &mut self.random) {
            Ok(earlier) => earlier,
            Err(refusal) => return Written::Refused(refusal),
        };
        let later = match site::begin(gateway, (server, self.writer), open, &mut self.random) {
            Ok(later) => later,
            Err(refusal) => return Written::Refused(refusal),
        };
        assert!(earlier.taken_over.is_cancelled(), "two connections write one part");
        match site::finish(gateway, &earlier, stream, &mut self.random) {
            Written::Refused(refusal) => check_sentence(&refusal.to_string()),
            Written::Durable(..) => panic!("a connection that was taken over finished its part"),
        }
        site::finish(gateway, &later, stream, &mut self.random)
    }

    pub fn seal(&mut self, server: ServerId, seal: &SealPoint) -> Result<PointId, Failure> {
        let fate = self.agents_fate();
        if fate == Fate::NotSent {
            return Err(Failure::Away("cut off".into()));
        }
        let gateway = self.gateway()?;
        let open: Vec<_> = seal
            .removed
            .iter()
            .filter_map(|disk| Some((*disk, gateway.disk_state(server, *disk)?.epoch)))
            .collect();
        let sealed = gateway.seal_point(server, seal, self.writer, self.wall(self.clocks.site_ms));
        if let Err(refusal) = &sealed {
            return Err(self.judge("seal", refusal));
        }
        self.model.figures.sealed += 1;
        // What was sent of a disk that is protected no longer, and is in no point, is not needed.
        let site = self.current;
        self.model.acknowledged.retain(|place, _| {
            let of_removed = open.contains(&(place.disk, place.epoch));
            (place.site, place.server) != (site, server) || !of_removed
        });
        self.note(format!("  point {} of {server} is sealed", seal.point));
        if self.chance(self.faults.streams, 50) {
            let again = gateway.seal_point(server, seal, self.writer, self.wall(self.clocks.site_ms));
            assert_eq!(again.unwrap().point, seal.point, "the same seal again is answered the same");
        }
        if self.chance(self.faults.site_crash, 10) {
            drop(gateway);
            self.crash_site(self.current);
            return Err(Failure::Away("the process server was killed".into()));
        }
        match fate {
            Fate::AnswerLost => Err(Failure::Away("the receipt was lost".into())),
            _ => Ok(seal.point),
        }
    }

    pub async fn digests(
        &mut self,
        server: ServerId,
        disk: DiskNumber,
        request: &DigestRequest,
    ) -> Result<Vec<BlockDigest>, Failure> {
        if self.agents_fate() != Fate::Good {
            return Err(Failure::Away("cut off".into()));
        }
        let gateway = self.gateway()?;
        let Some(snapshot) = gateway.snapshot(server, disk) else {
            return Err(self.judge("digests", &Refusal::UnknownDisk { disk }));
        };
        if let Some(behind) = gateway.behind(server, &snapshot) {
            let refusal =
                Refusal::UploadBehind { files: behind.files, bytes: behind.bytes, points: behind.points };
            return Err(self.judge("digests", &refusal));
        }
        let open_files =
            if request.point.is_none() { gateway.stored_files(server, disk) } else { Vec::new() };
        let request =
            process_server::DigestRequest { point: request.point, open_files, of: request.of.clone() };
        let answered = match self.vault_for("digests") {
            Ok(_) if self.recovery.store.is_away() => {
                Err(LinkError::NotNow("the store cannot be reached now".into()))
            }
            Ok(_) => match self.recovery.digests(server, disk, &request).await {
                Ok(digests) => Ok(digests),
                Err(VolumesError::Vault(error)) => Err(self.link_error("digests", &error)),
                Err(error) => {
                    check_sentence(&error.to_string());
                    self.note(format!("  digests: {error}"));
                    Err(LinkError::NotNow(error.to_string()))
                }
            },
            Err(error) => Err(error),
        };
        match answered {
            Ok(bytes) => Ok(bytes.as_chunks::<16>().0.iter().map(|digest| BlockDigest(*digest)).collect()),
            Err(error) => Err(self.judge("digests", &Refusal::Vault(error))),
        }
    }

    /// The disks of a point, to be read for as long as a volume is open.
    pub async fn open_disks(
        &self,
        server: ServerId,
        point: PointId,
    ) -> Vec<(DiskNumber, PointDisk, Vec<String>)> {
        let Some(vault) = &self.recovery.vault else { return Vec::new() };
        let mut disks = Vec::new();
        for (disk, image) in &self.model.points[&point].images {
            let (_, files) = vault.files_of_point(point, *disk).await.unwrap();
            let objects = files.iter().map(|file| file.object.clone()).collect();
            match self.recovery.open_disk(vault, server, *disk, image.bytes, &files).await {
                Ok(opened) => disks.push((*disk, opened, objects)),
                Err(message) => assert!(self.recovery.store.any_damage(), "point {point}: {message}"),
            }
        }
        disks
    }

    /// Looks at what a process server tells its operator.
    pub fn take_events(&mut self, site: usize) {
        let Some(gateway) = self.sites[site].gateway.clone() else { return };
        for event in gateway.take_events() {
            check_sentence(&event.message);
            self.note(format!("  event {}: {}", event.code, event.message));
            match (event.code.as_str(), event.server) {
                ("spool_damaged", Some(server)) => {
                    assert!(
                        self.model.spool_damaged.contains(&(site, server)),
                        "damage where none was done: {}",
                        event.message
                    );
                }
                ("spool_superseded", Some(server)) => {
                    // The vault has gone on another way: the agent compares.
                    self.model.acknowledged.retain(|place, _| {
                        (place.site, place.server) != (site, server) || Some(place.disk) != event.disk
                    });
                }
                _ => {}
            }
        }
    }
}
