//! What an operator is told when a machine cannot be had.

use std::net::TcpListener;

use lifeboat_compute::{
    Attachment, DiskAddress, Firmware, Forward, MacAddress, MachineSpec, MachineStatus, Nic, NicModel,
    OffReason, Provider, QemuProvider,
};

use crate::guests::UP;
use crate::site::{Site, processes_in, settings};

async fn refused(site: &Site, spec: &MachineSpec) -> String {
    let error = site.provider.start(spec).await.unwrap_err().to_string();
    assert_eq!(processes_in(&site.place.path().join("state")), [0; 0], "{error}");
    error
}

#[tokio::test]
async fn a_machine_that_cannot_be_is_refused_with_the_reason() {
    let site = Site::new().await;
    let good = site.spec(1, UP);
    let wrong = |change: &dyn Fn(&mut MachineSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec
    };
    for (spec, what) in [
        (wrong(&|spec| spec.cpus = 0), "0 processors"),
        (wrong(&|spec| spec.disks[0].bytes = 1000), "no number of sectors"),
        (wrong(&|spec| spec.disks.push(spec.disks[0].clone())), "the same number"),
        (wrong(&|spec| spec.memory_mib = 1 << 24), "MiB of memory and this machine has"),
        (
            wrong(&|spec| {
                let socket = std::path::PathBuf::from(format!("/{}", "x".repeat(120)));
                spec.disks[0].source = DiskAddress::NbdUnix { socket, export: "x".into() };
            }),
            "more than 107 bytes",
        ),
    ] {
        let said = refused(&site, &spec).await;
        assert!(said.contains(what), "{said}");
        assert_eq!(site.provider.status(spec.id).await.unwrap(), MachineStatus::Absent, "{said}");
    }
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_can_be_repeated_when_that_is_mended() {
    let site = Site::new().await;
    let spec = site.spec(1, UP);
    let image = site.place.path().join("image");
    let away = site.place.path().join("away");
    std::fs::rename(&image, &away).unwrap();
    let said = refused(&site, &spec).await;
    assert!(said.contains("did not start") && said.contains("No such file"), "{said}");
    let status = site.provider.status(spec.id).await.unwrap();
    let MachineStatus::Off { why: OffReason::NotStarted { why: Some(why) } } = status else {
        panic!("{status:?}");
    };
    assert_eq!(why, said);

    std::fs::rename(&away, &image).unwrap();
    let mut smaller = spec.clone();
    smaller.disks[0].bytes /= 2;
    let said = refused(&site, &smaller).await;
    assert!(said.contains("should have 2097152 bytes and what is served has 4194304"), "{said}");

    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
}

#[tokio::test]
async fn missing_programs_and_files_are_named_with_their_package() {
    let site = Site::new().await;
    let mut without = settings(&site.place.path().join("other"));
    without.program = "/nowhere/qemu".into();
    without.ovmf_code = "/nowhere/OVMF.fd".into();
    let provider = QemuProvider::open(without.clone()).await.unwrap();
    for error in
        [provider.capabilities().await.unwrap_err(), provider.start(&site.spec(1, UP)).await.unwrap_err()]
    {
        assert!(error.to_string().contains("install the Debian package qemu-system-x86"), "{error}");
    }
    drop(provider);

    without.program = "true".into();
    let provider = QemuProvider::open(without.clone()).await.unwrap();
    let error = provider.capabilities().await.unwrap_err();
    assert!(error.to_string().contains("true does not work: asked for its version"), "{error}");
    drop(provider);

    without.program = "qemu-system-x86_64".into();
    let provider = QemuProvider::open(without).await.unwrap();
    assert_eq!(provider.capabilities().await.unwrap().firmwares, [Firmware::Bios]);
    let mut spec = site.spec(1, UP);
    spec.firmware = Firmware::Uefi;
    let error = provider.start(&spec).await.unwrap_err();
    assert!(error.to_string().contains("install the Debian package ovmf"), "{error}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_said() {
    let site = Site::new().await;
    let mut spec = site.spec(1, UP);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let host_port = taken.local_addr().unwrap().port();
    let forwards = vec![Forward { host_port, guest_port: 22 }];
    let attachment = Attachment::Isolated { subnet: None, forwards };
    spec.nics = vec![Nic { mac: MacAddress::local(1), model: NicModel::E1000e, attachment }];
    let said = refused(&site, &spec).await;
    assert!(said.contains("did not start") && said.contains(&host_port.to_string()), "{said}");
}

#[tokio::test]
async fn capabilities_say_what_runs_guests_and_why() {
    let site = Site::new().await;
    let capabilities = site.provider.capabilities().await.unwrap();
    assert!(capabilities.version.starts_with("QEMU "), "{capabilities:?}");
    assert!(capabilities.memory_mib_free > 100 && capabilities.cpus > 0, "{capabilities:?}");

    let mut settings = settings(&site.place.path().join("other"));
    settings.acceleration = lifeboat_compute::AccelerationChoice::Try;
    let provider = QemuProvider::open(settings.clone()).await.unwrap();
    let tried = provider.capabilities().await.unwrap();
    // Whatever is the case on this machine, a guest runs as the answer says.
    let spec = site.spec(1, UP);
    provider.start(&spec).await.unwrap();
    crate::machine::wait_for(async || {
        Some(provider.console(spec.id, 0).await.unwrap()).filter(|part| part.text.contains("UP"))
    })
    .await
    .expect("no guest runs as the capabilities say");
    provider.remove(spec.id).await.unwrap();
    drop(provider);

    // The answer is kept: another provider has it without a trial.
    let kept = settings.findings.join("try.json");
    let text = std::fs::read_to_string(&kept).unwrap();
    let provider = QemuProvider::open(settings).await.unwrap();
    let again = provider.capabilities().await.unwrap();
    assert_eq!((again.acceleration, again.version), (tried.acceleration, tried.version));
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), text);
}
