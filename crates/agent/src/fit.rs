//! Fitting a started copy to its machine: names of network cards, and fixed addresses that become others.
//!
//! The machine's firmware orders both ([`CardChange`]), and the agent inside the copy obeys before the
//! network is configured. What it writes goes to the copy's disk, which is a volume's overlay: no recovery
//! point is touched, and the original never is, since its firmware orders nothing. Every start does it
//! again, and finds it done.

mod cards;
pub(crate) mod configuration;
mod file;
mod links;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lifeboat_model::{AddressChange, CardChange};

use crate::facts::host::{Host, name};
use crate::facts::network_configuration::{CONNECTIONS, IFCFG, INTERFACES, INTERFACES_D, NETWORKD};
use crate::recovery_copy;
use configuration::{Form, change_gateway};

/// Cards are waited for so long: the rest of the start waits meanwhile.
const CARDS_WITHIN: Duration = Duration::from_secs(10);
/// Where files are kept as they were, in a place that nothing else reads.
const KEPT: &str = "/var/lib/lifeboat-agent/before-fit";

/// Fits the system whose files are below `root`, when it is a copy.
///
/// # Errors
/// One sentence on all that could not be done; everything else is.
pub(crate) fn fit(root: &Path) -> Result<(), String> {
    let host = Host::new(root, || {});
    let sys = host.path("/sys");
    if !recovery_copy::is_copy(&sys) {
        tracing::info!("this machine is no started copy of a server: nothing is changed");
        return Ok(());
    }
    let tables = recovery_copy::tables(&sys)
        .map_err(|error| format!("the firmware cannot be asked what this copy is to change: {error}"))?;
    let changes = CardChange::all_from_smbios(&tables);
    // First the files: a card that gets its name may be configured at once.
    let mut troubles: Vec<String> = changes
        .iter()
        .filter_map(|change| change.address)
        .flat_map(|address| change_address(&host, &address))
        .collect();
    troubles.extend(cards::name_cards(&host, &changes, CARDS_WITHIN));
    if troubles.is_empty() { Ok(()) } else { Err(troubles.join("; ")) }
}

/// Fits this copy while it runs, for one in which the unit `lifeboat-fit.service` is not installed. The
/// service manager runs the command, since the agent's own unit may not change network cards.
pub(crate) fn later() {
    let outcome =
        if Path::new("/run/systemd/system").exists() { by_service_manager() } else { fit(Path::new("/")) };
    if let Err(sentence) = outcome {
        tracing::error!("{}.", sentence.trim_end_matches('.'));
    }
}

fn by_service_manager() -> Result<(), String> {
    let failed = |why: String| {
        format!("systemd-run cannot fit this copy to its machine: {why}; run lifeboat-agent fit")
    };
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let output = Command::new("systemd-run")
        .args(["--quiet", "--description=Lifeboat: fits a started copy to its machine"])
        .arg(program)
        .arg("fit")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().replace('\n', ", ")))
    }
}

/// Changes an address in all files that configure it; answers what is wrong.
fn change_address(host: &Host, change: &AddressChange) -> Vec<String> {
    let mut troubles = Vec::new();
    let mut is_configured = false;
    for (form, path) in files(host) {
        let Some(text) = read(host, &path, &mut troubles) else { continue };
        let changed = configuration::change(form, &text, change);
        is_configured |= changed.is_configured;
        if let Some(text) = changed.text {
            write(host, &path, &text, &mut troubles);
        }
        if let Some((from, to)) = change.gateway.filter(|_| form == Form::Ifcfg && changed.is_configured) {
            for path in routes_of(&path) {
                let text = read(host, &path, &mut troubles);
                if let Some(text) = text.and_then(|text| change_gateway(&text, from, to)) {
                    write(host, &path, &text, &mut troubles);
                }
            }
        }
    }
    if !is_configured && troubles.is_empty() {
        let AddressChange { from, to, .. } = change;
        troubles.push(format!(
            "the address {from} is to become {to}, and no file that configures the network has it; set it by hand"
        ));
    }
    troubles
}

/// Whether a file of this name is read.
type IsRead = fn(&str) -> bool;

/// The files in which facts look for addresses, each with its form.
fn files(host: &Host) -> Vec<(Form, PathBuf)> {
    let mut files = vec![(Form::Ifupdown, PathBuf::from(INTERFACES))];
    let forms: [(Form, &[&str], IsRead); 5] = [
        (Form::Ifupdown, &[INTERFACES_D], |_| true),
        (Form::Netplan, &["/etc/netplan"], |name| name.ends_with(".yaml")),
        (Form::Networkd, &NETWORKD, |name| name.ends_with(".network")),
        (Form::Keyfile, &CONNECTIONS, |_| true),
        (Form::Ifcfg, &IFCFG, |name| name.starts_with("ifcfg-")),
    ];
    for (form, directories, is_read) in forms {
        let entries = directories.iter().flat_map(|directory| host.entries(directory));
        let fitting = entries.filter(|path| {
            let name = name(path);
            is_read(&name) && !name.starts_with('.') && host.path(path).is_file()
        });
        files.extend(fitting.map(|path| (form, path)));
    }
    files
}

/// Where the gateway of an interface with an `ifcfg` file may be beside it.
fn routes_of(ifcfg: &Path) -> [PathBuf; 4] {
    let interface = name(ifcfg).trim_start_matches("ifcfg-").to_owned();
    let beside = |name: String| ifcfg.with_file_name(name);
    [
        beside(format!("route-{interface}")),
        beside(format!("ifroute-{interface}")),
        beside("routes".to_owned()),
        // Red Hat's; SUSE has a directory there.
        PathBuf::from("/etc/sysconfig/network"),
    ]
}

/// The text of a file; none when there is none.
fn read(host: &Host, path: &Path, troubles: &mut Vec<String>) -> Option<String> {
    match file::text(&host.path(path)) {
        Ok(text) => text,
        Err(error) => {
            troubles.push(format!("{} cannot be read: {error}", path.display()));
            None
        }
    }
}

fn write(host: &Host, path: &Path, text: &str, troubles: &mut Vec<String>) {
    let relative = path.strip_prefix("/").unwrap_or(path);
    // What is below /run is made anew at every start.
    let kept = (!relative.starts_with("run")).then(|| host.path(KEPT).join(relative));
    match file::replace(&host.path(path), kept.as_deref(), text) {
        Ok(()) => {
            tracing::info!("{} has the addresses that this machine's network has for it", path.display());
        }
        Err(error) => troubles.push(format!("{} cannot be changed: {error}", path.display())),
    }
}
