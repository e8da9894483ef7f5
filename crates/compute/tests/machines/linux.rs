//! Guests that are a whole Linux, for what one sector cannot do: networks.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lifeboat_compute::{DiskAddress, DiskFormat, MachineSpec};

const RECIPE: &str = include_str!("linux.sh");
/// Names the directory in which made images are kept, as for the servers of the end-to-end tests.
const CACHE_VARIABLE: &str = "LIFEBOAT_IMAGE_CACHE";
const CACHE: &str = "/var/cache/lifeboat/images";
const DISK_BYTES: u64 = 32 << 20;

/// Gets an address for the first interface by DHCP.
pub const BY_DHCP: &str = r#"
cat > /by-dhcp << 'SCRIPT'
#!/bin/sh
if [ "$1" = bound ]; then
    ip address add "$ip/$mask" dev eth0
    ip route add default via "$router"
fi
SCRIPT
chmod 755 /by-dhcp
udhcpc -q -n -t 20 -i eth0 -s /by-dhcp
"#;

/// A web server on port 80 that says this.
pub fn web_server(text: &str) -> String {
    format!("mkdir /www\necho '{text}' > /www/index.html\nhttpd -p 80 -h /www\n")
}

/// Asks a web server and says what it said, or NOTHING, after the word.
pub fn ask(word: &str, place: &str) -> String {
    format!("echo {word} $(timeout 10 wget -q -O - http://{place}/ || echo NOTHING)\n")
}

/// A machine that starts Linux and then does what the script says. It says IDLE when it has.
pub fn spec(place: &Path, id: u64, script: &str) -> MachineSpec {
    let path = place.join(format!("linux-{id}"));
    make(&path, script);
    let mut spec = crate::machine::spec(id, DiskAddress::File { path, format: DiskFormat::Raw });
    spec.disks[0].bytes = DISK_BYTES;
    spec.memory_mib = 192;
    spec
}

fn make(image: &Path, script: &str) {
    let cache = std::env::var_os(CACHE_VARIABLE).map_or_else(|| CACHE.into(), PathBuf::from);
    let mut recipe = Command::new("sh")
        .args(["-c", RECIPE, "linux.sh"])
        .args([image, &cache])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    recipe.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(recipe.wait().unwrap().success(), "the guest's disk was not made");
}
