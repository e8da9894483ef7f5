//! `lifeboat machine …`.

use std::time::{Duration, Instant};

use lifeboat_api::{Hydrate, LocalFormat, Machine, MachinePurpose, MachineState, StopMachine};
use lifeboat_client::Vault;

use crate::arguments::{LocalFormatArgument, MachineCommand, Output, SiteArguments};
use crate::command::console;
use crate::command::job::finish;
use crate::failure::{Answer, Failure};
use crate::site;
use crate::table::{print_json, print_line, print_table, time};

/// How long a guest is waited for that was told to shut down.
const SHUT_DOWN_WITHIN: Duration = Duration::from_secs(300);

pub async fn run(arguments: &SiteArguments, command: MachineCommand) -> Result<Answer, Failure> {
    let vault = site::connect(arguments)?;
    let json = arguments.output == Output::Json;
    match command {
        MachineCommand::List => {
            let machines = vault.machines().await?;
            if json { print_json(&machines)? } else { print_machines(&machines) }
        }
        MachineCommand::Show { server } => {
            let machine = vault.machine(&server).await?;
            if json { print_json(&machine)? } else { print_machine(&machine) }
        }
        MachineCommand::Console { server, follow, input } => {
            return console::run(arguments, &vault, &server, console::Use { follow, input }).await;
        }
        MachineCommand::Hydrate { server, format, limit, no_wait } => {
            let format = match format {
                LocalFormatArgument::Raw => LocalFormat::Raw,
                LocalFormatArgument::Qcow2 => LocalFormat::Qcow2,
            };
            let job = vault.hydrate(&server, &Hydrate { format, bytes_per_second: limit }).await?;
            return finish(arguments, &vault, job, no_wait, None).await;
        }
        MachineCommand::Start { server } => {
            let machine = vault.start_machine(&server).await?;
            if json { print_json(&machine)? } else { print_machine(&machine) }
        }
        MachineCommand::Stop { server, force, no_wait } => {
            let mut machine = vault.stop_machine(&server, &StopMachine { force }).await?;
            if !no_wait {
                machine = until_off(&vault, machine).await?;
            }
            if json { print_json(&machine)? } else { print_machine(&machine) }
        }
        MachineCommand::Screenshot { server, file } => {
            let png = vault.screenshot(&server).await?;
            std::fs::write(&file, &png).map_err(|error| {
                Failure::new(format!("cannot write the screen to {}: {error}", file.display()))
            })?;
            if json {
                print_json(&serde_json::json!({"file": file, "bytes": png.len()}))?;
            } else {
                print_line(&format!("The screen is in {}.", file.display()));
            }
        }
    }
    Ok(Answer::Done)
}

/// Waits until the guest of a machine that is being stopped has shut down.
async fn until_off(vault: &Vault, machine: Machine) -> Result<Machine, Failure> {
    let (begun, server) = (Instant::now(), machine.server.to_string());
    let mut machine = machine;
    while machine.state == MachineState::Running {
        let name = &machine.server_name;
        if machine.stopped.is_none() {
            return Err(Failure::new(format!("the machine of {name} was started again meanwhile")));
        }
        if begun.elapsed() > SHUT_DOWN_WITHIN {
            return Err(Failure::new(format!(
                "the guest of {name} was told to shut down and still runs after {} minutes: shut it down from inside \
                 (`lifeboat machine console {name} --input`), or take its power away with `lifeboat machine stop {name} \
                 --force`",
                SHUT_DOWN_WITHIN.as_secs() / 60
            )));
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::new(format!(
                    "no longer waits; the guest of {name} was told to shut down: see with `lifeboat machine show {name}`"
                )));
            }
        }
        machine = vault.machine(&server).await?;
    }
    Ok(machine)
}

fn print_machines(machines: &[Machine]) {
    if machines.is_empty() {
        print_line("No machine runs at the recovery site.");
        return;
    }
    let rows: Vec<_> = machines
        .iter()
        .map(|machine| {
            let point = format!("{} ({})", time(machine.point_time), machine.point);
            [
                machine.server_name.clone(),
                purpose(machine),
                state(machine),
                point,
                time(machine.begun),
                place(machine),
            ]
        })
        .collect();
    print_table(["SERVER", "FOR", "STATE", "POINT (UTC)", "BEGUN (UTC)", "REACHED AT"], &rows);
}

fn print_machine(machine: &Machine) {
    print_line(&format!("{}: {}, {}", machine.server_name, purpose(machine), state(machine)));
    print_line(&format!("Point      {} ({})", time(machine.point_time), machine.point));
    print_line(&format!("Begun      {} by job {}", time(machine.begun), machine.job));
    print_line(&format!(
        "Machine    {}, {} processors, {} MiB",
        machine.id, machine.cpus, machine.memory_mib
    ));
    if let Some(volume) = machine.volume {
        print_line(&format!("Disks      volume {volume}"));
    }
    for disk in &machine.disk_files {
        print_line(&format!("Disk {:<5} {}", disk.disk.to_string(), disk.path.display()));
    }
    if let Some(network) = &machine.network {
        let address =
            machine.address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
        print_line(&format!("Network    {network}, {address}"));
    }
    if let (Some(entrance), Some(address)) = (&machine.entrance, machine.address) {
        print_line(&format!("Reached by `{entrance} ssh {address}` on the vault's machine"));
    }
    if !machine.forwards.is_empty() {
        print_line(&format!("Reached at {} on the vault's machine", forwards(machine)));
    }
}

fn purpose(machine: &Machine) -> String {
    match (machine.purpose, machine.committed) {
        (MachinePurpose::Drill, _) => "drill".to_owned(),
        (MachinePurpose::Failover, None) => "failover, not committed".to_owned(),
        (MachinePurpose::Failover, Some(committed)) => format!("failover, committed {}", time(committed)),
    }
}

fn state(machine: &Machine) -> String {
    let word = match machine.state {
        MachineState::Running => "running",
        MachineState::Off => "off",
        MachineState::Absent => "absent",
    };
    match &machine.reason {
        Some(reason) => format!("{word}: {reason}"),
        None => word.to_owned(),
    }
}

/// Where a machine is reached, or in which network it is.
fn place(machine: &Machine) -> String {
    match (&machine.network, machine.address) {
        (Some(network), Some(address)) => format!("{address} in {network}"),
        (Some(network), None) => format!("in {network}"),
        (None, _) => forwards(machine),
    }
}

fn forwards(machine: &Machine) -> String {
    let forward = |forward: &lifeboat_api::Forward| format!("127.0.0.1:{} -> {}", forward.port, forward.to);
    machine.forwards.iter().map(forward).collect::<Vec<_>>().join(", ")
}
