//! An agent as a process server sees it: it sends what it is given, over the real protocol.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lifeboat_model::{Digest, DiskNumber, Epoch, Extent, Part, PointId, PointKind};
use lifeboat_transport::{Client, ClientSettings, Method};
use lifeboat_trust::Credentials;
use lifeboat_wire::agent::{
    AgentReport, Assignment, CaptureFigures, CaptureMode, DiskDescription, DiskReport, DiskState,
    PartReceipt, SealDisk, SealPoint, SealReceipt,
};
use lifeboat_wire::{agent_path, stream};

/// The content of a frame with its digest, as an agent has it after reading.
#[derive(Clone)]
pub struct Frame {
    pub digest: Digest,
    pub bytes: Bytes,
}

impl Frame {
    pub fn new(bytes: Bytes) -> Self {
        Self { digest: Digest::of(&bytes), bytes }
    }

    fn blocks(&self) -> u64 {
        self.bytes.len() as u64 / 4096
    }
}

pub struct SimulatedAgent {
    client: Client,
    name: String,
    disk_bytes: u64,
}

const DISK: DiskNumber = DiskNumber(0);

impl SimulatedAgent {
    pub fn new(name: String, process_server: SocketAddr, credentials: &Path, disk_bytes: u64) -> Self {
        let credentials = Credentials::load(credentials, Timestamp::now()).unwrap();
        let settings = ClientSettings { call_timeout: Duration::from_secs(120), ..ClientSettings::default() };
        let client =
            Client::with_settings(&format!("https://{process_server}"), &credentials, settings).unwrap();
        Self { client, name, disk_bytes }
    }

    /// Makes itself and its disk known; answers when it may send.
    pub async fn join(&self) {
        self.report().await;
        let mut seen = None;
        loop {
            let mut query = vec![("wait_ms", 1000)];
            query.extend(seen.map(|seen| ("seen", seen)));
            let call = self.client.call(Method::GET, agent_path::ASSIGNMENT).query(&query);
            let assignment: Assignment = call.send().await.unwrap();
            let description = DiskDescription {
                server_name: self.name.clone(),
                path: "/dev/simulated".into(),
                hardware_id: None,
                bytes: self.disk_bytes,
            };
            let described = self.client.put::<DiskState>(&agent_path::disk(DISK), &description).await;
            if assignment.replicate && described.is_ok() {
                return;
            }
            seen = Some(assignment.revision);
        }
    }

    async fn report(&self) {
        let disk = DiskReport {
            disk: DISK,
            path: "/dev/simulated".into(),
            bytes: self.disk_bytes,
            waiting_bytes: 0,
            copy: None,
            trouble: None,
        };
        let report = AgentReport {
            time: Timestamp::now(),
            server_name: self.name.clone(),
            version: "simulated".into(),
            kernel: String::new(),
            boot_id: String::new(),
            capture: CaptureMode::Optimistic,
            captured: None,
            disks: vec![disk],
            cpu_ms: 0,
            memory_bytes: 0,
            events: Vec::new(),
        };
        // Before the vault knows the server this may be refused; it says nothing that matters here.
        let _ = self.client.post::<()>(agent_path::REPORT, &report).await;
    }

    /// Sends one part: frames, each with its first block.
    pub async fn send(&self, epoch: u64, part: u32, frames: Arc<Vec<(u64, Frame)>>) -> PartReceipt {
        let count = frames.len();
        let pieces = (0..=count + 1).flat_map(move |number| match number.checked_sub(1) {
            None => vec![stream::begin()],
            Some(number) if number == count => vec![stream::end(count as u64)],
            Some(number) => {
                let (first, frame) = &frames[number];
                let extent = Extent::new(*first, frame.blocks()).unwrap();
                stream::data(extent, frame.digest, frame.bytes.clone()).to_vec()
            }
        });
        let body = futures::stream::iter(pieces.map(Ok::<_, std::io::Error>));
        let path = agent_path::part(DISK, Epoch(epoch), Part(part));
        self.client.call(Method::PUT, &path).stream(body, None).send().await.unwrap()
    }

    /// Seals a point.
    pub async fn seal(&self, epoch: u64, parts: u32) {
        let disk = SealDisk { disk: DISK, epoch: Epoch(epoch), parts, bytes: self.disk_bytes };
        let seal = SealPoint {
            // Ids of points are unique over all servers, so real agents draw them.
            point: PointId::new(RandomState::new().hash_one(&self.name)),
            time: Timestamp::now(),
            kind: PointKind::Crash,
            disks: vec![disk],
            removed: Vec::new(),
            capture: CaptureFigures { attempts: 1, ..CaptureFigures::default() },
        };
        self.client.post::<SealReceipt>(agent_path::POINTS, &seal).await.unwrap();
    }
}
