//! The system itself: its name, firmware, processors, memory, and how long its last start took.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat_wire::facts::{Fact, Firmware, OperatingSystem};

use super::host::{Host, name};

/// How long systemd may take to tell its time.
const SYSTEMD_WITHIN: Duration = Duration::from_secs(5);

/// The variable that says whether the firmware checks signatures.
const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

pub(super) fn fact<T>(result: Result<T, String>) -> Fact<T> {
    match result {
        Ok(fact) => Fact::Known(fact),
        Err(why) => Fact::Unknown(why),
    }
}

pub(super) fn os(host: &Host) -> Result<OperatingSystem, String> {
    let text = host.text("/etc/os-release").or_else(|_| host.text("/usr/lib/os-release"))?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
    };
    let id = value("ID").unwrap_or_else(|| "linux".into());
    Ok(OperatingSystem {
        name: value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_else(|| id.clone()),
        id,
        like: value("ID_LIKE").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
    })
}

/// `esp` is where the EFI system partition is mounted, where it is.
pub(super) fn firmware(host: &Host, esp: Option<&str>) -> Firmware {
    if !host.has("/sys/firmware/efi") {
        return Firmware::Bios;
    }
    Firmware::Uefi { secure_boot: fact(secure_boot(host)), fallback_loader: fact(fallback_loader(host, esp)) }
}

/// Four bytes of attributes, then one that is 1 when signatures are checked.
fn secure_boot(host: &Host) -> Result<bool, String> {
    use std::io::Read;
    let mut value = [0; 5];
    let read = host.open(SECURE_BOOT).and_then(|mut file| file.read_exact(&mut value));
    read.map(|()| value[4] == 1).map_err(|error| format!("the firmware's variable SecureBoot: {error}"))
}

/// The names are those of x86 and ARM machines; a FAT file system does not tell upper from lower case.
fn fallback_loader(host: &Host, esp: Option<&str>) -> Result<bool, String> {
    let esp = esp.ok_or("the EFI system partition is not mounted at /boot/efi, /efi or /boot")?;
    let below = |directory: &str, wanted: &str| -> Option<PathBuf> {
        host.entries(directory).into_iter().find(|entry| name(entry).eq_ignore_ascii_case(wanted))
    };
    let boot = below(esp, "EFI").and_then(|efi| below(&efi.to_string_lossy(), "BOOT"));
    let loaders = boot.map(|boot| host.entries(&boot.to_string_lossy())).unwrap_or_default();
    let is_loader = |entry: &PathBuf| {
        let name = name(entry).to_ascii_lowercase();
        name == "bootx64.efi" || name == "bootaa64.efi"
    };
    Ok(loaders.iter().any(is_loader))
}

pub(super) fn cpus(host: &Host) -> Result<u32, String> {
    let online = host.text("/sys/devices/system/cpu/online")?;
    cpus_in(online.trim()).ok_or_else(|| format!("the kernel's list of processors is {:?}", online.trim()))
}

/// A list such as `0-3,8`.
fn cpus_in(list: &str) -> Option<u32> {
    let mut count = 0u32;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// As it is installed, where the kernel tells that; else what the kernel left for others.
pub(super) fn memory_bytes(host: &Host) -> Result<u64, String> {
    let directory = "/sys/devices/system/memory";
    let block = host.word(format!("{directory}/block_size_bytes"));
    if let Some(block) = block.and_then(|digits| u64::from_str_radix(&digits, 16).ok()) {
        let is_online = |entry: &PathBuf| {
            name(entry).starts_with("memory") && host.word(entry.join("state")).as_deref() == Some("online")
        };
        let blocks = host.entries(directory).iter().filter(|entry| is_online(entry)).count() as u64;
        if blocks > 0 {
            return Ok(blocks.saturating_mul(block));
        }
    }
    let text = host.text("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let kib: Option<u64> = line.and_then(|number| number.parse().ok());
    Ok(kib.ok_or("/proc/meminfo does not say MemTotal")? << 10)
}

/// systemd alone knows when a start was complete, and tells it to its own program.
pub(super) fn boot_ms(host: &Host) -> Result<u64, String> {
    if !host.has("/run/systemd/system") {
        return Err("the system was not started by systemd".into());
    }
    let program = ["/usr/bin/systemctl", "/bin/systemctl"].into_iter().find(|path| host.has(path));
    let program = program.ok_or("there is no systemctl")?;
    let mut child = Command::new(host.path(program))
        .args(["show", "--property=FinishTimestampMonotonic", "--value"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    let begun = Instant::now();
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if begun.elapsed() > SYSTEMD_WITHIN {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("systemctl did not answer in {} s", SYSTEMD_WITHIN.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.trim().parse::<u64>() {
        Ok(0) => Err("the start is not complete yet".into()),
        Ok(us) => Ok(us / 1000),
        Err(_) => Err("systemctl did not tell when the start was complete".into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::fs;

    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::new(root.path(), || {});
        (root, host)
    }

    #[test]
    fn a_list_of_processors_is_counted() {
        assert_eq!(cpus_in("0"), Some(1));
        assert_eq!(cpus_in("0-3,8,10-11"), Some(7));
        for wrong in ["", "3-1", "a", "0-4294967295,1-4294967295"] {
            assert_eq!(cpus_in(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn firmware_is_told_with_what_starts_without_its_variables() {
        let (_root, bios) = host(&[]);
        assert_eq!(firmware(&bios, None), Firmware::Bios);
        let (root, uefi) =
            host(&[(SECURE_BOOT, "\u{6}\0\0\0\u{1}"), ("/boot/efi/EFI/debian/grubx64.efi", "")]);
        let told = |fallback| Firmware::Uefi { secure_boot: Fact::Known(true), fallback_loader: fallback };
        assert_eq!(firmware(&uefi, Some("/boot/efi")), told(Fact::Known(false)));
        fs::create_dir_all(root.path().join("boot/efi/EFI/Boot")).unwrap();
        fs::write(root.path().join("boot/efi/EFI/Boot/bootx64.EFI"), "").unwrap();
        assert_eq!(firmware(&uefi, Some("/boot/efi")), told(Fact::Known(true)));
        let Firmware::Uefi { fallback_loader: Fact::Unknown(why), .. } = firmware(&uefi, None) else {
            panic!()
        };
        assert!(why.contains("not mounted"), "{why}");
    }

    #[test]
    fn memory_is_what_is_installed_or_what_the_kernel_has() {
        let (_root, with_blocks) = host(&[
            ("/sys/devices/system/memory/block_size_bytes", "8000000\n"),
            ("/sys/devices/system/memory/memory0/state", "online\n"),
            ("/sys/devices/system/memory/memory1/state", "offline\n"),
            ("/sys/devices/system/memory/memory2/state", "online\n"),
        ]);
        assert_eq!(memory_bytes(&with_blocks), Ok(256 << 20));
        let (_root, without) = host(&[("/proc/meminfo", "MemTotal:        2048 kB\nMemFree: 1 kB\n")]);
        assert_eq!(memory_bytes(&without), Ok(2 << 20));
        assert!(memory_bytes(&host(&[]).1).unwrap_err().contains("/proc/meminfo"));
    }

    #[test]
    fn a_system_tells_its_name_and_its_family() {
        let text = "PRETTY_NAME=\"Rocky Linux 9.4\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n";
        let os = os(&host(&[("/etc/os-release", text)]).1).unwrap();
        assert_eq!((os.name.as_str(), os.id.as_str(), os.like.len()), ("Rocky Linux 9.4", "rocky", 3));
    }
}
