//! A vault with a server whose points boot, its volumes, its machines and its jobs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_api::{Job, JobState, MachineState, Probe, TargetSettings};
use lifeboat_compute::{
    AccelerationChoice, LibvirtProvider, LibvirtSettings, Provider, QemuProvider, QemuSettings,
};
use lifeboat_model::{PointId, ServerId, Span};
use lifeboat_vault::jobs::{Interruption, JobError, JobRequest, Jobs, Step};
use lifeboat_vault::{NbdSettings, Store, Vault, Volumes};
use rustix::process::{Pid, Signal, kill_process};
use rustls::ServerConfig;
use tempfile::TempDir;

use crate::boot_sector::{boot_sector, obedient_boot_sector};
use crate::support::{Counted, Files, PROCESS_SERVER, SERVER, at, describe, register, send};
use lifeboat_wire::process_server::GrantRequest;

/// How long a job may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ids that a vault draws at most until it is started again.
const IDS_OF_A_LIFE: u64 = 1 << 10;

/// Where the ids of a site begin: those of machines name things of the host, which sites of tests that run at the
/// same time share. What names network devices has 44 bits of an id.
fn first_id() -> u64 {
    static SITES: AtomicU64 = AtomicU64::new(1);
    u64::from(std::process::id() & 0xf_ffff) << 24 | SITES.fetch_add(1, Ordering::Relaxed) << 14
}

pub struct Site {
    pub dir: TempDir,
    pub vault: Arc<Vault>,
    first_id: u64,
    pub volumes: Arc<Volumes>,
    pub provider: Arc<dyn Provider>,
    pub jobs: Arc<Jobs>,
    /// The libvirt that runs its machines; QEMU itself if none.
    pub libvirt: Option<String>,
}

impl Site {
    /// A site with two points, whose guests say `first` and `second` and then offer a login.
    pub async fn new() -> Self {
        Self::with(Arc::new(())).await
    }

    pub async fn with(interruption: Arc<dyn Interruption>) -> Self {
        Self::made(interruption, None).await
    }

    /// The same with machines that a libvirt runs.
    pub async fn at_libvirt(uri: String) -> Self {
        Self::made(Arc::new(()), Some(uri)).await
    }

    async fn made(interruption: Arc<dyn Interruption>, libvirt: Option<String>) -> Self {
        let dir = tempfile::Builder::new().prefix("lb").tempdir().unwrap();
        Self::made_in(dir, interruption, libvirt).await
    }

    /// The same in a directory, whose `machines` is for what belongs to machines.
    pub async fn made_in(dir: TempDir, interruption: Arc<dyn Interruption>, libvirt: Option<String>) -> Self {
        let ids = Counted::from(1);
        let vault = Vault::create(&dir.path().join("state"), None, ids.clone(), at(0)).await.unwrap();
        let first_id = first_id();
        ids.0.store(first_id, Ordering::SeqCst);
        register(&vault, SERVER, "db1", 0).await;
        for (epoch, word) in [(1, "first"), (2, "second")] {
            commit_guest(&vault, SERVER, epoch, boot_sector(&format!("{word} login: "))).await;
        }
        let site = Self::open(dir, Arc::new(vault), first_id, interruption, libvirt).await;
        site.jobs.set_target(SERVER, &target("login: ")).await.unwrap();
        site
    }

    async fn open(
        dir: TempDir,
        vault: Arc<Vault>,
        first_id: u64,
        interruption: Arc<dyn Interruption>,
        libvirt: Option<String>,
    ) -> Self {
        let settings = NbdSettings { socket_directory: dir.path().join("nbd"), ..NbdSettings::default() };
        let provider = crypto();
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoCertificate));
        let tls = Arc::new(tls);
        let volumes =
            Arc::new(Volumes::start(Arc::clone(&vault), &settings, move || Arc::clone(&tls)).await.unwrap());
        let machines = dir.path().join("machines");
        let provider: Arc<dyn Provider> = match &libvirt {
            None => Arc::new(QemuProvider::open(QemuSettings::new(machines)).await.unwrap()),
            Some(uri) => {
                let settings = LibvirtSettings {
                    acceleration: AccelerationChoice::Tcg,
                    ..LibvirtSettings::new(machines, uri, vault.id())
                };
                Arc::new(LibvirtProvider::open(settings).await.unwrap())
            }
        };
        let jobs = Jobs::new(Arc::clone(&volumes), provider.clone(), Timestamp::now, interruption);
        Self { dir, vault, first_id, volumes, provider, jobs, libvirt }
    }

    /// Protects another server with one point, whose guest offers a login at once.
    pub async fn second_server(&self, server: ServerId, name: &str) {
        register(&self.vault, server, name, 0).await;
        commit_guest(&self.vault, server, 1, boot_sector("other login: ")).await;
        self.jobs.set_target(server, &target("login: ")).await.unwrap();
    }

    /// A third point, whose guest says `third`, and shuts down when it is told to.
    pub async fn obedient_guest(&self) {
        commit_guest(&self.vault, SERVER, 3, obedient_boot_sector("third login: ")).await;
    }

    /// What wants attention: codes of events, the newest first.
    pub async fn attention(&self) -> Vec<String> {
        let events = self.vault.catalog().attention(10).await.unwrap();
        events.into_iter().map(|event| event.code).collect()
    }

    /// Ends the process of the server's machine, as somebody who knows nothing of it.
    pub async fn kill_machine(&self) {
        let machine = self.jobs.machine(SERVER).await.unwrap();
        let marker = format!("guest=lifeboat-{}", machine.id);
        let is_its = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&marker)
        };
        let numbers = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let mut pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let pid = Pid::from_raw(pids.find(is_its).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        let begun = std::time::Instant::now();
        while self.jobs.machine(SERVER).await.unwrap().state == MachineState::Running {
            assert!(begun.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the vault where it is, and starts it again.
    pub async fn restart(self, interruption: Arc<dyn Interruption>) -> Self {
        let Self { dir, vault, first_id, volumes, provider, jobs, libvirt } = self;
        let first_id = first_id + IDS_OF_A_LIFE;
        jobs.pause().await;
        volumes.stop().await;
        vault.close().await;
        drop((jobs, volumes, provider, vault));
        let state = dir.path().join("state");
        let vault = loop {
            // Tasks that have just ended may hold the state directory for a moment.
            match Vault::open(&state, None::<Store>, Counted::from(first_id), at(1000)).await {
                Ok(vault) => break vault,
                Err(error) if error.to_string().contains("uses") => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        Self::open(dir, Arc::new(vault), first_id, interruption, libvirt).await
    }

    /// The ids of the points, oldest first.
    pub async fn points(&self) -> Vec<PointId> {
        crate::support::listed(&self.vault, SERVER).await
    }

    /// From now on its machines are waited for so long, and never come up.
    pub async fn never_up(&self, within: &str) {
        let mut patient = target("never: ");
        patient.up_within = Some(within.parse().unwrap());
        self.jobs.set_target(SERVER, &patient).await.unwrap();
    }

    pub async fn begin(&self, request: JobRequest) -> Result<Job, JobError> {
        let row = self.jobs.begin(SERVER, request).await?;
        self.jobs.view(row).await
    }

    /// Begins a job and waits for its end.
    pub async fn run(&self, request: JobRequest) -> Job {
        let job = self.begin(request).await.unwrap();
        self.end_of(&job).await
    }

    pub async fn end_of(&self, job: &Job) -> Job {
        let ended = self.jobs.job_within(job.id, PATIENCE).await.unwrap();
        let is_under_way = matches!(ended.state, JobState::Running | JobState::RollingBack);
        assert!(!is_under_way, "the job did not end: {ended:#?}");
        ended
    }

    /// Waits until a step is being done.
    pub async fn until_step(&self, job: &Job, step: Step) {
        let begun = std::time::Instant::now();
        loop {
            let job = self.jobs.job(job.id).await.unwrap();
            let row = job.steps.iter().find(|row| row.name == step.name()).unwrap();
            if row.state != lifeboat_api::StepState::Waiting {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{job:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the console of the server's machine shows a text so many times.
    pub async fn until_console(&self, text: &str, times: usize) {
        let begun = std::time::Instant::now();
        while self.console().await.matches(text).count() < times {
            assert!(begun.elapsed() < PATIENCE, "{}", self.console().await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the server's machine has written to its console.
    pub async fn console(&self) -> String {
        self.jobs.console(SERVER, 0).await.unwrap().text
    }

    /// Nothing is left of any machine: no process, file, volume or row.
    pub async fn assert_nothing_left(&self) {
        assert_eq!(self.provider.machines().await.unwrap(), []);
        assert_eq!(self.volumes.list().await.unwrap(), []);
        assert_eq!(self.vault.catalog().recoveries().await.unwrap(), []);
        let overlays = std::fs::read_dir(self.dir.path().join("state/volumes"));
        let left: Vec<_> = overlays.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
        let place = self.dir.path().display().to_string();
        let processes: Vec<_> = command_lines().filter(|line| line.contains(&place)).collect();
        assert!(processes.is_empty(), "{processes:?}");
        // What holds a network names no file.
        let works_here = |cwd: &std::path::PathBuf| cwd.starts_with(self.dir.path());
        let processes: Vec<_> = working_directories().filter(works_here).collect();
        assert!(processes.is_empty(), "{processes:?}");
    }

    pub async fn provider_machines(&self) -> usize {
        self.provider.machines().await.unwrap().len()
    }

    /// Ends what a test leaves running.
    pub async fn end(self) {
        self.jobs.pause().await;
        for machine in self.provider.machines().await.unwrap() {
            self.provider.remove(machine).await.unwrap();
        }
        self.volumes.stop().await;
    }
}

/// How the machine is to look: small, and up when its console shows a text.
pub fn target(text: &str) -> TargetSettings {
    TargetSettings {
        cpus: Some(1),
        memory_mib: Some(64),
        probes: vec![Probe::Console { text: text.to_owned() }],
        up_within: Some(Span::seconds(100)),
        ..TargetSettings::default()
    }
}

pub fn drill(keep: bool) -> JobRequest {
    JobRequest::Drill { point: "latest".to_owned(), keep, network: None }
}

pub fn failover(point: &str) -> JobRequest {
    JobRequest::Failover { point: point.to_owned(), network: None }
}

/// The kinds of steps that something happened to, and what is to happen to the others.
pub struct Once {
    /// What happens to a step, the first time.
    what: fn(Step) -> Option<JobError>,
    /// Before or after the step.
    after: bool,
    hit: Mutex<Vec<Step>>,
}

impl Once {
    pub fn new(after: bool, what: fn(Step) -> Option<JobError>) -> Arc<Self> {
        Arc::new(Self { what, after, hit: Mutex::default() })
    }

    pub fn hit(&self) -> Vec<Step> {
        self.hit.lock().unwrap().clone()
    }

    fn happen(&self, step: Step) -> Result<(), JobError> {
        let mut hit = self.hit.lock().unwrap();
        if hit.contains(&step) {
            return Ok(());
        }
        match (self.what)(step) {
            Some(error) => {
                hit.push(step);
                Err(error)
            }
            None => Ok(()),
        }
    }
}

impl Interruption for Once {
    fn before(&self, step: Step) -> Result<(), JobError> {
        if self.after { Ok(()) } else { self.happen(step) }
    }

    fn after(&self, step: Step) -> Result<(), JobError> {
        if self.after { self.happen(step) } else { Ok(()) }
    }
}

/// Commits a point whose first disk has this boot sector.
async fn commit_guest(vault: &Vault, server: ServerId, epoch: u64, mut block: Vec<u8>) {
    let files = Files::counted();
    block.resize(4096, 0);
    let content = files.with_frames(server, 0, epoch, 0, &[block]);
    let file = describe(0, epoch, 0, &content);
    let grant =
        vault.grant(PROCESS_SERVER, &GrantRequest { server, file: file.clone() }, at(2)).await.unwrap();
    send(vault, &grant.url, &[content]).await.unwrap();
    let seconds = i64::try_from(epoch * 10).unwrap();
    let mut commit = files.commit(server, seconds, &[(0, epoch, 1)]);
    commit.files = vec![file];
    vault.commit_point(PROCESS_SERVER, &commit, at(seconds + 1)).await.unwrap();
}

fn working_directories() -> impl Iterator<Item = std::path::PathBuf> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes.filter_map(|entry| std::fs::read_link(entry.path().join("cwd")).ok())
}

fn command_lines() -> impl Iterator<Item = String> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
}

fn crypto() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Nobody connects over TLS here.
#[derive(Debug)]
struct NoCertificate;

impl rustls::server::ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
}
