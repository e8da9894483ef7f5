//! DHCP in a network: dnsmasq, which knows the addresses that guests have already.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use lifeboat_model::MacAddress;

use super::super::process::Process;
use super::super::settings::QemuSettings;
use super::{BRIDGE, Namespace};
use crate::error::ComputeError;
use crate::network::SharedNetwork;

/// How long a guest has an address before it asks again.
const LEASE: &str = "1h";

/// Sees to it that addresses are given, to these interfaces these ones. The inner error is why that cannot
/// be.
pub(super) async fn serve(
    namespace: &Namespace,
    settings: &QemuSettings,
    directory: &Path,
    network: &SharedNetwork,
    reserved: &BTreeMap<MacAddress, Ipv4Addr>,
) -> Result<Result<(), String>, ComputeError> {
    let arguments = arguments(directory, network, reserved);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    if let Some(process) = process(directory)? {
        if runs_with(&process, &arguments) {
            return Ok(Ok(()));
        }
        // It reads reservations at its start alone. Leases are in a file, so none is lost.
        if !process.is_killed().await {
            return Ok(Err(format!("its DHCP server, process {}, does not end", process.number())));
        }
    }
    super::super::programs::find(&settings.dnsmasq, "dnsmasq-base")?;
    // It answers when it is ready, and goes on by itself then.
    let started = namespace.run(&settings.dnsmasq, &arguments).await?;
    Ok(started.map_err(|said| format!("its DHCP server does not start: {said}")))
}

/// The network's DHCP server.
pub(super) fn process(directory: &Path) -> Result<Option<Process>, ComputeError> {
    // It leaves the directory in which it was started, but the argument names it.
    Process::with_argument(None, &lease_argument(directory))
}

/// The address that an interface was given.
pub(super) fn leased(directory: &Path, mac: MacAddress) -> Option<Ipv4Addr> {
    let leases = fs::read_to_string(lease_file(directory)).ok()?;
    address_in(&leases, mac)
}

fn address_in(leases: &str, mac: MacAddress) -> Option<Ipv4Addr> {
    let mac = mac.to_string();
    leases.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        (fields.next()? == mac).then(|| fields.next()?.parse().ok()).flatten()
    })
}

fn lease_file(directory: &Path) -> PathBuf {
    directory.join("leases")
}

fn lease_argument(directory: &Path) -> String {
    format!("--dhcp-leasefile={}", lease_file(directory).display())
}

fn arguments(
    directory: &Path,
    network: &SharedNetwork,
    reserved: &BTreeMap<MacAddress, Ipv4Addr>,
) -> Vec<String> {
    let subnet = network.subnet;
    let mut arguments = vec![
        "--conf-file=/dev/null".to_owned(),
        format!("--interface={BRIDGE}"),
        "--except-interface=lo".to_owned(),
        "--bind-interfaces".to_owned(),
        // No names are known here.
        "--port=0".to_owned(),
        "--no-resolv".to_owned(),
        "--no-hosts".to_owned(),
        "--no-poll".to_owned(),
        "--dhcp-authoritative".to_owned(),
        "--no-ping".to_owned(),
        format!("--dhcp-range={},{},{},{LEASE}", subnet.first_host(), subnet.last_host(), subnet.mask()),
        format!("--dhcp-option=option:router,{}", network.gateway),
        lease_argument(directory),
        "--pid-file".to_owned(),
        // It opens its files first.
        "--user=nobody".to_owned(),
        "--group=nogroup".to_owned(),
    ];
    arguments.extend(reserved.iter().map(|(mac, address)| format!("--dhcp-host={mac},{address}")));
    arguments
}

fn runs_with(process: &Process, arguments: &[&str]) -> bool {
    let line = fs::read(format!("/proc/{}/cmdline", process.number())).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    line.trim_end_matches('\0').split('\0').skip(1).eq(arguments.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_found_by_the_address_of_the_interface() {
        let leases = "1795712345 52:00:00:00:00:01 10.5.0.7 db1 01:52:00:00:00:00:01\n\
                      1795712399 52:00:00:00:00:02 10.5.0.9 * *\n";
        assert_eq!(address_in(leases, MacAddress::local(1)), Some([10, 5, 0, 7].into()));
        assert_eq!(address_in(leases, MacAddress::local(2)), Some([10, 5, 0, 9].into()));
        assert_eq!(address_in(leases, MacAddress::local(3)), None);
    }
}
