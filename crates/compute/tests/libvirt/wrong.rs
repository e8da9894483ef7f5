//! What an operator is told when a machine cannot be had.

use lifeboat_compute::{
    AccelerationChoice, DiskAddress, DiskBus, LibvirtProvider, LibvirtSettings, MachineSpec, MachineStatus,
    OffReason, Provider,
};

use crate::guests::UP;
use crate::machine::wait_for;
use crate::site::Site;

async fn refused(site: &Site<'_>, spec: &MachineSpec) -> String {
    let error = site.provider().start(spec).await.unwrap_err().to_string();
    assert_eq!(site.processes(spec.id), [0; 0], "{error}");
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
        (wrong(&|spec| spec.memory_mib = 1 << 24), "MiB of memory and this machine has"),
        (
            wrong(&|spec| spec.disks[0].bus = DiskBus::Nvme),
            "no NVMe disks; attach its disks by virtio or SATA",
        ),
        (
            wrong(&|spec| {
                spec.disks[0].source = DiskAddress::NbdUnix { socket: "/x".into(), export: "a\nb".into() };
            }),
            "characters that XML has not",
        ),
    ] {
        let said = refused(&site, &spec).await;
        assert!(said.contains(what), "{said}");
    }
    site.provider().remove(good.id).await.unwrap();
    site.assert_nothing_left();
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
    let status = site.provider().status(spec.id).await.unwrap();
    let MachineStatus::Off { why: OffReason::NotStarted { why: Some(why) } } = status else {
        panic!("{status:?}");
    };
    assert_eq!(why, said);

    std::fs::rename(&away, &image).unwrap();
    let mut smaller = spec.clone();
    smaller.disks[0].bytes /= 2;
    let said = refused(&site, &smaller).await;
    assert!(said.contains("should have 2097152 bytes and what is served has 4194304"), "{said}");

    site.provider().start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
    site.provider().remove(spec.id).await.unwrap();
}

#[tokio::test]
async fn a_libvirt_that_cannot_be_used_is_named_with_what_to_do() {
    let site = Site::new().await;
    let other =
        |state: &str| LibvirtSettings { state_directory: site.place.path().join(state), ..site.settings() };
    let without = LibvirtSettings { program: "/nowhere/virsh".into(), ..other("a") };
    let provider = LibvirtProvider::open(without).await.unwrap();
    for error in
        [provider.capabilities().await.unwrap_err(), provider.start(&site.spec(1, UP)).await.unwrap_err()]
    {
        assert!(error.to_string().contains("install the Debian package libvirt-clients"), "{error}");
    }
    let uri = "qemu+unix:///system?socket=/nowhere/sock".to_owned();
    let provider = LibvirtProvider::open(LibvirtSettings { uri, ..other("b") }).await.unwrap();
    let error = provider.capabilities().await.unwrap_err();
    assert!(error.retry_may_help(), "{error}");
    let said = error.to_string();
    assert!(said.contains("cannot reach libvirt at qemu+unix:///system?socket=/nowhere/sock: "), "{said}");
    assert!(said.contains("No such file") && said.contains("see that libvirtd runs there"), "{said}");

    let uri = "qemu+tcp://host/system".to_owned();
    let error = LibvirtProvider::open(LibvirtSettings { uri, ..other("c") }).await.unwrap_err();
    assert!(error.to_string().contains("it is not encrypted; use qemu+tls://"), "{error}");
}

#[tokio::test]
async fn capabilities_say_what_runs_guests_and_why() {
    let site = Site::new().await;
    let settings = LibvirtSettings {
        state_directory: site.place.path().join("other"),
        acceleration: AccelerationChoice::Try,
        ..site.settings()
    };
    let provider = LibvirtProvider::open(settings).await.unwrap();
    let tried = provider.capabilities().await.unwrap();
    assert!(tried.version.starts_with("libvirt ") && tried.version.contains(" with QEMU "), "{tried:?}");
    assert!(tried.memory_mib_free > 100 && tried.cpus > 0, "{tried:?}");
    // Nothing is left of the trial, and whatever came out of it, a guest runs as the answer says.
    site.assert_nothing_left();
    let spec = site.spec(1, UP);
    provider.start(&spec).await.unwrap();
    wait_for(async || {
        Some(provider.console(spec.id, 0).await.unwrap()).filter(|part| part.text.contains("UP"))
    })
    .await
    .expect("no guest runs as the capabilities say");
    provider.remove(spec.id).await.unwrap();
    site.assert_nothing_left();
}
