//! The whole way of a real Debian server with an agent inside: a drill beside it, the loss of its power,
//! failover, another point, commit, and its return.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with the tests of libvirt's machines")]
#[path = "../../compute/tests/libvirt/daemon.rs"]
mod daemon;

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_proof::{
    Acknowledged, DiskLayout, HOST_ADDRESS, MACHINE_DISK, NumberedCommits, Reach, ServerDisk, Site, Ssh,
    VirtualMachine, install_agent, scratch, wait_within,
};
use serde_json::Value;

use daemon::Daemon;

/// The first copy takes a minute or two on a machine of its own; the processor is emulated.
const LIMIT: Duration = Duration::from_secs(1200);
const POINTS_UNDER_LOAD: usize = 3;

/// The address that QEMU gives a guest, so that the source keeps it when it is fixed.
const FIXED_ADDRESS: &str = "10.0.2.15";
const FIXED_IN: &str = "/etc/systemd/network/wired.network";
/// What it becomes in the network of failovers, which has another subnet: the lowest that is free.
const MOVED_TO: &str = "10.7.0.2";
const GATEWAY: &str = "10.7.0.1";

#[test]
fn a_server_with_root_on_a_logical_volume_goes_the_whole_way() {
    goes_the_whole_way(DiskLayout::Lvm);
}

#[test]
#[ignore = "takes long, and the one above does nearly the same: cargo xtask test-machine"]
fn a_server_with_a_master_boot_record_goes_the_whole_way() {
    goes_the_whole_way(DiskLayout::Bios);
}

#[test]
#[ignore = "takes long: cargo xtask test-machine"]
fn a_server_with_uefi_goes_the_whole_way() {
    goes_the_whole_way(DiskLayout::Uefi);
}

#[test]
#[ignore = "takes long, and smaller guests go through libvirt too: cargo xtask test-machine"]
fn a_drill_comes_up_at_a_libvirt() {
    let daemon = Daemon::start();
    let home = tempfile::Builder::new().prefix("lifeboat-server-").tempdir_in(scratch()).unwrap();
    let disk = ServerDisk::in_dir(home.path(), DiskLayout::Bios);
    let site = Site::start_at_libvirt(HOST_ADDRESS, MACHINE_DISK, "5s", daemon.uri());
    let server = protect(&site, &disk);
    let commits = NumberedCommits::start(&server.ssh, Duration::ZERO);
    wait_within(LIMIT, "a first commit", || (newest_number(&commits) > 0).then_some(()));
    await_more_points(&site);
    drill(&site, &disk, &server.ssh, &commits);
    assert_eq!(daemon.virsh(&["list", "--all", "--name"]).1.trim(), "", "domains are left");
}

#[test]
#[ignore = "takes long: cargo xtask test-machine"]
fn a_copy_without_the_unit_is_fitted_by_its_agent() {
    let home = tempfile::Builder::new().prefix("lifeboat-server-").tempdir_in(scratch()).unwrap();
    let disk = ServerDisk::in_dir(home.path(), DiskLayout::Bios);
    let site = Site::start_for_remote_agent(HOST_ADDRESS, MACHINE_DISK, "5s");
    let server = protect(&site, &disk);
    server.ssh.run("systemctl disable --quiet lifeboat-fit && rm $(systemctl show --property=FragmentPath --value lifeboat-fit)");
    server.ssh.run("systemctl daemon-reload && sync");
    site.await_point_taken("a point without the unit");
    job(&site, &["failover", "test", "source", "--keep"]);
    let copy = copy_of(&site, &disk);
    let names = "ls /sys/class/net";
    wait_within(LIMIT, "the card's name", || (copy.run(names) == server.ssh.run(names)).then_some(()));
    let log = copy.run("journalctl --boot --no-pager");
    assert!(log.contains("is named"), "the card had its name by itself, so that this shows nothing");
    job(&site, &["failover", "cleanup", "source"]);
}

/// Starts a server, installs the agent and waits for its first point.
fn protect(site: &Site, disk: &ServerDisk) -> VirtualMachine {
    let server = VirtualMachine::start(disk, Reach::Host);
    server.await_login();
    let fixed = format!("s|^DHCP=.*|Address={FIXED_ADDRESS}/24\\nGateway={HOST_ADDRESS}|");
    server.ssh.run(&format!("sed -i '{fixed}' {FIXED_IN} && networkctl reload"));
    wait_within(LIMIT, "the address to be a fixed one", || {
        let addresses = server.ssh.run("ip -4 -oneline address show scope global");
        (addresses.contains(FIXED_ADDRESS) && !addresses.contains("dynamic")).then_some(())
    });
    install_agent(&server.ssh, &site.remote_agent_dir());
    wait_within(LIMIT, "the first point", || (!points(site).is_empty()).then_some(()));
    site.json(["target", "set", "source", "--probe", "console=source login:", "--probe", "ssh=22"]);
    site.json(["target", "set", "source", "--memory", "1024", "--up-within", "20m"]);
    // All else is derived from what the agent tells of its server.
    let readiness = wait_within(LIMIT, "the facts of the server", || {
        let readiness = site.json(["readiness", "source"]);
        let codes = readiness["findings"].as_array().unwrap();
        codes.iter().all(|finding| finding["code"] != "facts_missing").then_some(readiness)
    });
    assert_ne!(readiness["verdict"], "not-ready", "{readiness}");
    let firmware = if disk.layout == DiskLayout::Uefi { "uefi" } else { "bios" };
    assert_eq!(readiness["target"]["firmware"], firmware, "{readiness}");
    // What changes copies leaves an original alone.
    assert_eq!(server.ssh.attempt("systemctl is-active lifeboat-fit").status.code(), Some(3));
    assert_eq!(server.ssh.run("systemctl is-enabled lifeboat-fit"), "enabled");
    server
}

fn goes_the_whole_way(layout: DiskLayout) {
    let home = tempfile::Builder::new().prefix("lifeboat-server-").tempdir_in(scratch()).unwrap();
    let disk = ServerDisk::in_dir(home.path(), layout);
    let site = Site::start_for_remote_agent(HOST_ADDRESS, MACHINE_DISK, "5s");
    let server = protect(&site, &disk);

    let commits = NumberedCommits::start(&server.ssh, Duration::ZERO);
    await_more_points(&site);
    let older = points(&site)[0].clone();
    let commits_before = newest_number(&commits);
    wait_within(LIMIT, "commits after that point", || {
        (newest_number(&commits) > commits_before + 20).then_some(())
    });
    drill(&site, &disk, &server.ssh, &commits);

    site.await_point_taken("a last point");
    server.cut_power();
    let acknowledged = commits.stop();
    site.json(["network", "create", "lab", "--subnet", "10.7.0.0/24", "--gateway", GATEWAY]);
    let failover = job(&site, &["failover", "run", "source", "--point", "latest", "--network", "lab"]);
    // From here on: what had been sent before could still be committed until then.
    let before = ids(&site);
    let copy = moved_copy_of(&site, &disk);
    await_database(&copy);
    let (point, all) = (point_of(&site, &failover), NumberedCommits::count(&copy));
    assert_has(all, &acknowledged, point["time"].as_str().unwrap());

    let id = older["id"].as_str().unwrap();
    job(&site, &["failover", "change-point", "source", "--point", id]);
    let copy = moved_copy_of(&site, &disk);
    await_database(&copy);
    let some = NumberedCommits::count(&copy);
    assert_has(some, &acknowledged, older["time"].as_str().unwrap());
    assert!(some < all, "the older point has {some} commits, the newest {all}");
    job(&site, &["failover", "commit", "source"]);
    copy.run("psql --no-psqlrc --username=postgres --command 'insert into numbered values (1000000000)'");
    the_source_returns(&site, &disk, &before);
    let machine = site.json(["machine", "show", "source"]);
    assert_eq!(machine["state"], "running", "{machine}");
}

/// A copy beside the server: isolated, whole, and without an agent that sends. Nothing of it is left.
fn drill(site: &Site, disk: &ServerDisk, server: &Ssh, commits: &NumberedCommits) {
    let drill = job(site, &["failover", "test", "source", "--keep"]);
    assert_eq!(drill["report"]["up"], true, "{drill}");
    let copy = copy_of(site, disk);
    await_database(&copy);
    let point = point_of(site, &drill);
    assert_has(NumberedCommits::count(&copy), &commits.acknowledged(), point["time"].as_str().unwrap());
    let reached = copy.attempt(&format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{HOST_ADDRESS}/9443'"));
    assert!(!reached.status.success(), "a packet left the drill's network");
    // Its card sits in another slot, and has the name all the same.
    assert_eq!(copy.run("ls /sys/class/net"), server.run("ls /sys/class/net"));
    copy.run("systemctl is-active lifeboat-fit");
    let log = copy.run("journalctl --boot --unit lifeboat-agent --no-pager");
    assert!(log.contains("sends nothing"), "{log}");
    // Replication went on, and goes on beside the copy.
    await_more_points(site);
    job(site, &["failover", "cleanup", "source", "--note", "commits are all there"]);
    assert_eq!(site.json(["machine", "list"]), Value::Array(Vec::new()));
    assert_eq!(site.json(["volume", "list"]), Value::Array(Vec::new()));
    assert_eq!(site.json(["server", "show", "source"])["state"], "protected");
}

/// The source comes back with its own disk: it is told that it is fenced, and its workload goes on.
fn the_source_returns(site: &Site, disk: &ServerDisk, before: &[String]) {
    let returned = VirtualMachine::start(disk, Reach::Host);
    returned.await_login();
    await_database(&returned.ssh);
    wait_within(LIMIT, "the agent to be told that the server has failed over", || {
        let output = returned.ssh.attempt("lifeboat-agent status --output json");
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        let reason = status["capture"]["reason"].as_str()?;
        reason.contains("failed over").then_some(())
    });
    let commits = NumberedCommits::start(&returned.ssh, Duration::ZERO);
    wait_within(LIMIT, "commits on the returned source", || {
        (commits.acknowledged().len() > 10).then_some(())
    });
    commits.stop();
    assert_eq!(ids(site), before, "nothing of it became a point");
    returned.cut_power();
}

/// Runs a command whose job must be done; answers the job.
fn job(site: &Site, words: &[&str]) -> Value {
    let job = site.json(words);
    assert_eq!(job["state"], "done", "{job}");
    job
}

/// The way to the SSH of a machine with a network of its own.
fn copy_of(site: &Site, disk: &ServerDisk) -> Ssh {
    let machine = site.json(["machine", "show", "source"]);
    let forwards = machine["forwards"].as_array().unwrap();
    let forward = forwards.iter().find(|forward| forward["to"] == 22);
    let port = forward.and_then(|forward| forward["port"].as_u64()).unwrap();
    Ssh::at_port(u16::try_from(port).unwrap(), disk)
}

/// The way to the SSH of a machine in the network of failovers, where it has another address than the source.
fn moved_copy_of(site: &Site, disk: &ServerDisk) -> Ssh {
    let machine = site.json(["machine", "show", "source"]);
    assert_eq!(machine["address"], MOVED_TO, "{machine}");
    let copy = Ssh::within(machine["entrance"].as_str().unwrap(), MOVED_TO, disk);
    let addresses = copy.run("ip -4 -oneline address show scope global");
    assert!(addresses.contains(&format!("inet {MOVED_TO}/24")), "{addresses}");
    assert!(!addresses.contains(FIXED_ADDRESS), "{addresses}");
    let route = copy.run("ip route show default");
    assert!(route.contains(&format!("via {GATEWAY}")), "{route}");
    // What the administrator wrote is kept as it was.
    let kept = copy.run(&format!("cat /var/lib/lifeboat-agent/before-fit{FIXED_IN}"));
    assert!(kept.contains(FIXED_ADDRESS), "{kept}");
    copy
}

fn await_database(ssh: &Ssh) {
    wait_within(LIMIT, "PostgreSQL to recover", || {
        ssh.attempt("pg_isready --quiet").status.success().then_some(())
    });
}

fn await_more_points(site: &Site) {
    let before = points(site).len();
    wait_within(LIMIT, "points under load", || {
        (points(site).len() >= before + POINTS_UNDER_LOAD).then_some(())
    });
}

fn newest_number(commits: &NumberedCommits) -> u64 {
    commits.acknowledged().last().map_or(0, |commit| commit.number)
}

/// Fails unless a copy with the commits 1 to `count` has all that were acknowledged before `time`.
fn assert_has(count: u64, acknowledged: &[Acknowledged], time: &str) {
    let time: Timestamp = time.parse().unwrap();
    let before = acknowledged.iter().filter(|commit| commit.at < time);
    let wanted = before.map(|commit| commit.number).max().unwrap_or(0);
    assert!(wanted > 0, "nothing was committed before the point, so it proves nothing");
    assert!(count >= wanted, "commit {wanted} was acknowledged before the point, but it ends at {count}");
    let newest = acknowledged.last().unwrap().number;
    assert!(count <= newest + 1, "the copy has {count} commits, but the server made only {newest}");
}

/// The recovery point that a job has used.
fn point_of(site: &Site, job: &Value) -> Value {
    points(site).into_iter().find(|point| point["id"] == job["point"]).unwrap()
}

fn ids(site: &Site) -> Vec<String> {
    points(site).iter().map(|point| point["id"].as_str().unwrap().to_owned()).collect()
}

/// The points of the server, newest first; none while the vault does not know it.
fn points(site: &Site) -> Vec<Value> {
    let output = site.lifeboat(["point", "list", "source"]);
    serde_json::from_slice(&output.stdout)
        .ok()
        .and_then(|points: Value| points.as_array().cloned())
        .unwrap_or_default()
}
