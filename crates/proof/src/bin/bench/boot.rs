//! How long a Debian server takes to its login, by where its disk comes from.

use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_compute::{
    Attachment, CopyIdentity, DiskAddress, DiskBus, DiskFormat, Firmware, HydrationTarget, MacAddress,
    MachineDisk, MachineId, MachineSpec, Nic, NicModel, Provider, Purpose, QemuProvider, QemuSettings,
};
use lifeboat_model::{DiskNumber, PointId, ServerId, VaultId};

use crate::table::{Figure, Table, list, median};

const ROUNDS: u64 = 3;
const LOGIN: &str = "source login:";
const BOOT_MAX: Duration = Duration::from_secs(900);
const DISK: DiskNumber = DiskNumber(0);

/// Boots the image, the volume behind the URI, and the volume while it is copied out, one after the other. All by
/// the same provider and alike but for the disk.
pub fn rows(table: &mut Table, dir: &Path, image: &Path, nbd_uri: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let provider = runtime.block_on(QemuProvider::open(QemuSettings::new(dir.join("machines")))).unwrap();
    let bytes = std::fs::metadata(image).unwrap().len();
    // A boot writes to its disk.
    let copy = dir.join("copy.img");
    lifeboat_proof::run("cp", ["--sparse=always", image.to_str().unwrap(), copy.to_str().unwrap()]);
    let raw = DiskAddress::File { path: copy, format: DiskFormat::Raw };
    let mut runs: [Vec<f64>; 3] = Default::default();
    for round in 0..ROUNDS {
        for (way, runs) in runs.iter_mut().enumerate() {
            let source = if way == 0 { raw.clone() } else { volume(nbd_uri) };
            let spec = spec(round * 3 + way as u64 + 1, source, bytes);
            let hydrated = (way == 2).then(|| dir.join("hydrated.img"));
            runs.push(runtime.block_on(boot(&provider, &spec, hydrated.as_deref())));
        }
    }
    let [raw, volume, hydrating] = [median(&runs[0]), median(&runs[1]), median(&runs[2])];
    for (what, seconds, all, most) in [
        ("boot of a Debian server to its login, from a volume", volume, &runs[1], 1.25),
        ("the same while the volume is copied out", hydrating, &runs[2], 1.5),
    ] {
        table.figure(Figure {
            what: what.into(),
            ours: format!("{seconds:.1} s ({})", list(all, 1)),
            peer: format!("raw file {raw:.1} s ({})", list(&runs[0], 1)),
            ratio: Some(seconds / raw),
            goal: format!("<= {most}"),
            reached: seconds / raw <= most,
        });
    }
}

/// Seconds from the start to the login.
async fn boot(provider: &QemuProvider, spec: &MachineSpec, hydrated: Option<&Path>) -> f64 {
    let begun = Instant::now();
    provider.start(spec).await.unwrap();
    if let Some(path) = hydrated {
        let (path, format) = (path.to_owned(), DiskFormat::Raw);
        let target = HydrationTarget { path, format, bytes_per_second: None };
        provider.hydrate(spec.id, DISK, &target).await.unwrap();
    }
    while !provider.console(spec.id, 0).await.unwrap().text.contains(LOGIN) {
        assert!(begun.elapsed() < BOOT_MAX, "the guest did not come to its login");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    provider.remove(spec.id).await.unwrap();
    seconds
}

fn spec(number: u64, source: DiskAddress, bytes: u64) -> MachineSpec {
    let attachment = Attachment::Isolated { subnet: None, forwards: Vec::new() };
    MachineSpec {
        id: MachineId::new(number),
        name: "debian".into(),
        cpus: 2,
        memory_mib: 1024,
        firmware: Firmware::Bios,
        disks: vec![MachineDisk { number: DISK, source, bytes, bus: DiskBus::Virtio }],
        nics: vec![Nic { mac: MacAddress::local(number), model: NicModel::Virtio, attachment }],
        changes: Vec::new(),
        identity: CopyIdentity {
            vault: VaultId::new(1),
            server: ServerId::new(1),
            point: PointId::new(1),
            purpose: Purpose::Drill,
        },
    }
}

/// The export behind `nbd+unix:///EXPORT?socket=SOCKET`.
fn volume(nbd_uri: &str) -> DiskAddress {
    let rest = nbd_uri.strip_prefix("nbd+unix:///").unwrap();
    let (export, socket) = rest.split_once("?socket=").unwrap();
    DiskAddress::NbdUnix { socket: socket.into(), export: export.to_owned() }
}
