//! The way out of a network whose machines may reach the world: slirp4netns, a process of the host that
//! opens connections in its name. Nothing of the host is changed for it, nothing comes in through it, and
//! the host's loopback is not reached.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lifeboat_model::Ipv4Subnet;
use tokio::process::Command;
use tokio::time::Instant;

use super::super::process::Process;
use super::super::programs;
use super::super::settings::QemuSettings;
use super::Namespace;
use crate::error::ComputeError;

/// The device in the network's namespace that leads out.
const DEVICE: &str = "uplink";
/// Addresses between the network and the process: a range that is nobody's (RFC 2544).
const BETWEEN: &str = "198.18.0.0/24";
const START_LIMIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What leaves does so with the uplink's own address. Said twice it is there once.
const RULES: &str = "add table ip lifeboat; delete table ip lifeboat; add table ip lifeboat; \
    add chain ip lifeboat out { type nat hook postrouting priority srcnat ; }; \
    add rule ip lifeboat out oifname \"uplink\" masquerade";

/// Makes the way out, if it is not there. The inner error is why there can be none.
pub(super) async fn make(
    namespace: &Namespace,
    settings: &QemuSettings,
    directory: &Path,
    subnet: Ipv4Subnet,
) -> Result<Result<(), String>, ComputeError> {
    if BETWEEN.parse::<Ipv4Subnet>().is_ok_and(|between| between.overlaps(subnet)) {
        return Ok(Err(format!("its way out has the addresses {BETWEEN}, so {subnet} cannot be its own")));
    }
    let nft = Path::new("nft");
    programs::find(&settings.slirp4netns, "slirp4netns")?;
    programs::find(nft, "nftables")?;
    let log = directory.join("uplink.log");
    let mut child = None;
    if process(directory)?.is_none() {
        let file = File::create(&log).map_err(ComputeError::io("create", &log))?;
        let (number, cidr) = (namespace.number().to_string(), format!("--cidr={BETWEEN}"));
        let started = Command::new(&settings.slirp4netns)
            .args(["--configure", "--disable-host-loopback", "--mtu=1500", &cidr, &number, DEVICE])
            .current_dir(directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn();
        child = Some(started.map_err(ComputeError::io("run", &settings.slirp4netns))?);
    }
    let deadline = Instant::now() + START_LIMIT;
    // Its default route is the last that it makes.
    let route = ["-c", "ip route show default dev uplink | grep -q ."];
    while namespace.run(Path::new("sh"), &route).await?.is_err() {
        let ended = child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        if ended.is_some() || Instant::now() > deadline {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            return Ok(Err(format!("its way out does not start: {}", said.trim().replace('\n', "; "))));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let forward = ["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"];
    for (program, arguments) in [(Path::new("sh"), &forward[..]), (nft, &[RULES][..])] {
        if let Err(said) = namespace.run(program, arguments).await? {
            return Ok(Err(format!("its way out cannot be opened: {said}")));
        }
    }
    Ok(Ok(()))
}

/// The process that is the way out.
pub(super) fn process(directory: &Path) -> Result<Option<Process>, ComputeError> {
    Process::with_argument(Some(directory), DEVICE)
}
