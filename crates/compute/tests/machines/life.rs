//! From the start of a machine to its end.

use std::fs;

use jiff::Timestamp;
use lifeboat_compute::{CardChange, CopyIdentity, DiskBus, Firmware, MachineStatus, OffReason, Provider};
use lifeboat_model::DiskNumber;

use crate::guests::{BUTTON, SMBIOS, UP};
use crate::machine::{IDENTITY, changed_cards};
use crate::site::{Site, kill, processes_in};

#[tokio::test]
async fn a_machine_starts_shows_itself_and_goes_without_a_trace() {
    let site = Site::new().await;
    let spec = site.spec(1, UP);
    let before = Timestamp::now();
    assert_eq!(site.provider.status(spec.id).await.unwrap(), MachineStatus::Absent);
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;

    let status = site.provider.status(spec.id).await.unwrap();
    let MachineStatus::Running { since, first_instruction, halted, forwards } = status else {
        panic!("{status:?}");
    };
    let first_instruction = first_instruction.unwrap();
    assert!(before <= since && since <= first_instruction && first_instruction <= Timestamp::now());
    assert_eq!((halted, forwards), (None, Vec::new()));

    let screen = site.provider.screenshot(spec.id).await.unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(screen)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert!(info.width >= 640 && info.height >= 350, "{info:?}");
    assert!(pixels.iter().any(|byte| *byte > 100), "the screen is black");

    assert_eq!(processes_in(site.place.path()).len(), 1);
    assert_eq!(site.provider.machines().await.unwrap(), [spec.id]);
    site.provider.remove(spec.id).await.unwrap();
    assert_eq!(processes_in(site.place.path()), [0; 0]);
    assert!(site.provider.machines().await.unwrap().is_empty());
    assert_eq!(fs::read_dir(site.place.path().join("state/machines")).unwrap().count(), 0);
    assert_eq!(site.provider.status(spec.id).await.unwrap(), MachineStatus::Absent);
    assert!(site.place.path().join("image").exists(), "a disk that the provider did not make is gone");
    site.provider.remove(spec.id).await.unwrap();
    site.provider.power_off(spec.id).await.unwrap();
}

#[tokio::test]
async fn starting_twice_is_one_machine_and_other_settings_are_refused() {
    let site = Site::new().await;
    let spec = site.spec(1, UP);
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
    let process = processes_in(site.place.path());
    site.provider.start(&spec).await.unwrap();
    assert_eq!(processes_in(site.place.path()), process);

    let mut larger = spec.clone();
    larger.memory_mib *= 2;
    let error = site.provider.start(&larger).await.unwrap_err();
    assert!(error.to_string().contains("runs already with other settings"), "{error}");

    site.provider.power_off(spec.id).await.unwrap();
    assert_eq!(site.off(spec.id).await, OffReason::PoweredOff);
    site.provider.power_off(spec.id).await.unwrap();
    site.provider.start(&larger).await.unwrap();
    site.hears(spec.id, |said| said.matches("UP").count() == 2).await;
}

#[tokio::test]
async fn the_power_button_reaches_the_guest_and_its_end_is_told_from_a_crash() {
    let site = Site::new().await;
    let spec = site.spec(1, BUTTON);
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
    site.provider.shut_down(spec.id).await.unwrap();
    assert_eq!(site.off(spec.id).await, OffReason::GuestShutDown);
    assert_eq!(processes_in(site.place.path()), [0; 0]);
    assert!(site.said(spec.id).await.contains("OFF"), "the text is kept while the machine is off");
    site.provider.shut_down(spec.id).await.unwrap();

    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.matches("UP").count() == 2).await;
    kill(processes_in(site.place.path())[0]);
    let why = site.off(spec.id).await;
    assert!(matches!(&why, OffReason::Ended { .. }), "{why}");
    let error = site.provider.screenshot(spec.id).await.unwrap_err();
    assert!(error.to_string().contains("is off: its process ended"), "{error}");
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.matches("UP").count() == 3).await;
}

#[tokio::test]
async fn the_system_inside_learns_which_copy_it_is_and_what_it_is_to_change() {
    let site = Site::new().await;
    let mut spec = site.spec(1, SMBIOS);
    let (nics, changes) = changed_cards();
    (spec.nics, spec.changes) = (nics, changes.clone());
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains('>')).await;
    let console = fs::read(site.place.path().join(format!("state/machines/{}/console", spec.id))).unwrap();
    let begin = console.iter().position(|byte| *byte == b'<').unwrap();
    let end = console.iter().rposition(|byte| *byte == b'>').unwrap();
    let tables = &console[begin + 1..end];
    assert_eq!(CopyIdentity::from_smbios(tables), Some(IDENTITY));
    assert_eq!(CardChange::all_from_smbios(tables), changes);
    let text = String::from_utf8_lossy(tables);
    assert!(text.contains("Lifeboat\0Recovery copy\0"), "{text:?}");
    assert!(text.contains(&IDENTITY.server.to_string()), "{text:?}");
}

#[tokio::test]
async fn every_kind_of_disk_starts_a_guest() {
    let site = Site::new().await;
    for (id, bus) in [(1, DiskBus::Sata), (2, DiskBus::Nvme)] {
        let mut spec = site.spec(id, UP);
        spec.disks[0].bus = bus;
        site.provider.start(&spec).await.unwrap();
        site.hears(spec.id, |said| said.contains("UP")).await;
        site.provider.remove(spec.id).await.unwrap();
    }
}

#[tokio::test]
async fn a_machine_can_have_many_disks_and_starts_from_the_first() {
    let site = Site::new().await;
    let mut spec = site.spec(1, UP);
    for number in 1..=30 {
        let mut disk = spec.disks[0].clone();
        disk.number = DiskNumber(number);
        disk.bus = if number % 2 == 0 { DiskBus::Sata } else { DiskBus::Virtio };
        let path = site.place.path().join(format!("empty{number}"));
        fs::File::create(&path).unwrap().set_len(disk.bytes).unwrap();
        disk.source = lifeboat_compute::DiskAddress::File { path, format: lifeboat_compute::DiskFormat::Raw };
        spec.disks.push(disk);
    }
    site.provider.start(&spec).await.unwrap();
    site.hears(spec.id, |said| said.contains("UP")).await;
}

#[tokio::test]
async fn uefi_comes_up_with_variables_of_the_machine_s_own() {
    let site = Site::new().await;
    let mut spec = site.spec(1, UP);
    spec.firmware = Firmware::Uefi;
    spec.memory_mib = 128;
    site.provider.start(&spec).await.unwrap();
    // The disk has no loader for UEFI, which says so.
    site.hears(spec.id, |said| said.contains("BdsDxe")).await;
    let variables = site.place.path().join(format!("state/machines/{}/uefi-variables", spec.id));
    let original = fs::read(site_variables()).unwrap();
    assert_ne!(fs::read(&variables).unwrap(), original, "the firmware wrote nothing of its own");
    site.provider.remove(spec.id).await.unwrap();
    assert!(!variables.exists());
}

fn site_variables() -> std::path::PathBuf {
    lifeboat_compute::QemuSettings::new("").ovmf_variables
}
