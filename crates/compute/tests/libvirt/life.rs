//! From the start of a machine to its end.

use std::fs;

use jiff::Timestamp;
use lifeboat_compute::{
    CardChange, CopyIdentity, DiskAddress, DiskBus, DiskFormat, Firmware, MachineStatus, OffReason, Provider,
};
use lifeboat_model::DiskNumber;

use crate::daemon::{Daemon, kill};
use crate::guests::{BUTTON, SMBIOS, UP};
use crate::machine::{IDENTITY, changed_cards, wait_for};
use crate::site::Site;

#[tokio::test]
async fn a_machine_starts_shows_itself_and_goes_without_a_trace() {
    let site = Site::new().await;
    let provider = site.provider();
    let spec = site.spec(1, UP);
    let before = Timestamp::now();
    assert_eq!(provider.status(spec.id).await.unwrap(), MachineStatus::Absent);
    provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;

    let status = provider.status(spec.id).await.unwrap();
    let MachineStatus::Running { since, first_instruction, halted, forwards } = status else {
        panic!("{status:?}");
    };
    let first_instruction = first_instruction.unwrap();
    assert!(before <= since && since <= first_instruction && first_instruction <= Timestamp::now());
    assert_eq!((halted, forwards), (None, Vec::new()));

    let lit = wait_for(async || {
        let screen = provider.screenshot(spec.id).await.unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(screen)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert!(info.width >= 640 && info.height >= 350, "{info:?}");
        pixels.iter().any(|byte| *byte > 100).then_some(())
    });
    lit.await.expect("the screen stays black");

    let unable = provider.write_console(spec.id, b"x").await.unwrap_err().to_string();
    assert!(unable.contains("can only be read") && unable.contains("over SSH"), "{unable}");

    assert_eq!(site.processes(spec.id).len(), 1);
    assert_eq!(provider.machines().await.unwrap(), [spec.id]);
    provider.remove(spec.id).await.unwrap();
    site.assert_nothing_left();
    assert!(provider.machines().await.unwrap().is_empty());
    assert_eq!(provider.status(spec.id).await.unwrap(), MachineStatus::Absent);
    assert!(site.place.path().join("image").exists(), "a disk that the provider did not make is gone");
    provider.remove(spec.id).await.unwrap();
    provider.power_off(spec.id).await.unwrap();
}

#[tokio::test]
async fn starting_twice_is_one_machine_and_other_settings_are_refused() {
    let site = Site::new().await;
    let provider = site.provider();
    let spec = site.spec(1, UP);
    provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
    let process = site.processes(spec.id);
    provider.start(&spec).await.unwrap();
    assert_eq!(site.processes(spec.id), process);

    let mut larger = spec.clone();
    larger.memory_mib *= 2;
    let error = provider.start(&larger).await.unwrap_err();
    assert!(error.to_string().contains("runs already with other settings"), "{error}");

    provider.power_off(spec.id).await.unwrap();
    assert_eq!(site.off(spec.id).await, OffReason::PoweredOff);
    assert_eq!(site.processes(spec.id), [0; 0]);
    provider.power_off(spec.id).await.unwrap();
    provider.start(&larger).await.unwrap();
    site.hears(spec.id, |said| said.matches("UP").count() == 2).await;
    provider.remove(spec.id).await.unwrap();
    site.assert_nothing_left();
}

#[tokio::test]
async fn the_power_button_reaches_the_guest_and_its_end_is_told_from_a_crash() {
    let site = Site::new().await;
    let provider = site.provider();
    let spec = site.spec(1, BUTTON);
    provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
    provider.shut_down(spec.id).await.unwrap();
    assert_eq!(site.off(spec.id).await, OffReason::GuestShutDown);
    assert!(site.said(spec.id).await.contains("OFF"), "the text is kept while the machine is off");
    provider.shut_down(spec.id).await.unwrap();

    provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.matches("UP").count() == 2).await;
    kill(site.processes(spec.id)[0]);
    let why = site.off(spec.id).await;
    assert!(matches!(&why, OffReason::Ended { why } if why.contains(&site.domain(spec.id))), "{why}");
    let error = provider.screenshot(spec.id).await.unwrap_err();
    assert!(error.to_string().contains("is off: its process ended"), "{error}");
    provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.matches("UP").count() == 3).await;
    provider.remove(spec.id).await.unwrap();
}

#[tokio::test]
async fn the_system_inside_learns_which_copy_it_is_and_what_it_is_to_change() {
    let site = Site::new().await;
    let mut spec = site.spec(1, SMBIOS);
    let (nics, changes) = changed_cards();
    (spec.nics, spec.changes) = (nics, changes.clone());
    site.provider().start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains('>')).await;
    let console = site.place.path().join(format!("state/machines/{}/console", spec.id));
    let console = fs::read(console).unwrap();
    let begin = console.iter().position(|byte| *byte == b'<').unwrap();
    let end = console.iter().rposition(|byte| *byte == b'>').unwrap();
    let tables = &console[begin + 1..end];
    assert_eq!(CopyIdentity::from_smbios(tables), Some(IDENTITY));
    assert_eq!(CardChange::all_from_smbios(tables), changes);
    let text = String::from_utf8_lossy(tables);
    assert!(text.contains("Lifeboat\0Recovery copy\0"), "{text:?}");
    assert!(text.contains(&IDENTITY.server.to_string()), "{text:?}");
    site.provider().remove(spec.id).await.unwrap();
}

#[tokio::test]
async fn a_machine_can_have_many_disks_and_starts_from_the_first() {
    let site = Site::new().await;
    let mut spec = site.spec(1, UP);
    spec.disks[0].bus = DiskBus::Sata;
    for number in 1..=30 {
        let mut disk = spec.disks[0].clone();
        disk.number = DiskNumber(number);
        disk.bus = if number % 2 == 0 { DiskBus::Sata } else { DiskBus::Virtio };
        let path = site.place.path().join(format!("empty{number}"));
        fs::File::create(&path).unwrap().set_len(disk.bytes).unwrap();
        disk.source = DiskAddress::File { path, format: DiskFormat::Raw };
        spec.disks.push(disk);
    }
    site.provider().start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
    site.provider().remove(spec.id).await.unwrap();
}

#[tokio::test]
async fn uefi_comes_up_with_variables_of_the_machine_s_own() {
    let site = Site::new().await;
    let mut spec = site.spec(1, UP);
    spec.firmware = Firmware::Uefi;
    spec.memory_mib = 128;
    site.provider().start(&spec).await.unwrap();
    // The disk has no loader for UEFI, which says so.
    site.hears(spec.id, |said| said.contains("BdsDxe")).await;
    let variables = site.daemon.place.path().join("var/lib/libvirt/qemu/nvram");
    assert_eq!(crate::daemon::entries(&variables), 1);
    site.provider().remove(spec.id).await.unwrap();
    site.assert_nothing_left();
}

#[tokio::test]
async fn machines_outlive_the_vault_and_libvirt_itself() {
    let daemon = Daemon::start();
    let mut site = Site::at(&daemon).await;
    let spec = site.spec(1, UP);
    site.provider().start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
    let process = site.processes(spec.id);
    let other = lifeboat_compute::LibvirtProvider::open(site.settings()).await.unwrap_err();
    assert!(other.to_string().contains("in use by another process"), "{other}");

    site.replace_provider(|| daemon.restart()).await;
    assert_eq!(site.provider().machines().await.unwrap(), [spec.id]);
    let status = site.provider().status(spec.id).await.unwrap();
    assert!(
        matches!(status, MachineStatus::Running { first_instruction: Some(_), halted: None, .. }),
        "{status:?}"
    );
    assert!(site.said(spec.id).await.contains("UP"));
    site.provider().start(&spec).await.unwrap();
    assert_eq!(site.processes(spec.id), process);

    // A vault that lost what it kept has its machines again, with their texts.
    let state = site.place.path().join("state");
    site.replace_provider(|| fs::remove_dir_all(state).unwrap()).await;
    assert_eq!(site.provider().machines().await.unwrap(), [spec.id]);
    let status = site.provider().status(spec.id).await.unwrap();
    assert!(matches!(status, MachineStatus::Running { halted: None, .. }), "{status:?}");
    assert!(site.said(spec.id).await.contains("UP"));
    site.provider().start(&spec).await.unwrap();
    assert_eq!(site.processes(spec.id), process);
    let mut larger = spec.clone();
    larger.memory_mib *= 2;
    let error = site.provider().start(&larger).await.unwrap_err();
    assert!(error.to_string().contains("runs already with other settings"), "{error}");

    // Another vault at the same libvirt has none of them.
    let neighbour = Site::at(&daemon).await;
    assert!(neighbour.provider().machines().await.unwrap().is_empty());
    assert_eq!(neighbour.provider().status(spec.id).await.unwrap(), MachineStatus::Absent);
    neighbour.provider().remove(spec.id).await.unwrap();
    assert_eq!(site.processes(spec.id), process);

    site.provider().remove(spec.id).await.unwrap();
    site.assert_nothing_left();
}
