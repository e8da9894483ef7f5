//! Copying the disks of a running machine to local files, and moving the machine over to them.
//!
//! libvirt copies, also while no provider is there. Meanwhile the disk's source is what counts. When both are
//! equal, the guest is held for some tenths of a second. While it writes nothing, libvirt moves it to the copy, and
//! the vault writes down, durably, that the copy counts. So whatever ends at whatever moment, what is written down
//! names a file or source that has every write that the guest was told is done. That a guest is held is written
//! down first, and the next provider lets it go.

use lifeboat_model::{DiskNumber, MachineId};

use super::Host;
use super::domain::target_of;
use super::settings::START_LIMIT;
use super::status::Observed;
use super::uri::Uri;
use crate::directory::{LocalCopy, MachineDirectory, MachineState, Stage};
use crate::error::ComputeError;
use crate::hydration::{Asked, DiskHydration, HydrationState, HydrationTarget, asked};
use crate::qemu::mirror::{remove_file, set_stage};
use crate::spec::DiskFormat;

/// How far a copy is, in bytes. Equal when nothing is left to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    done: u64,
    total: u64,
}

impl Host {
    /// Why disks are not copied, if they are not.
    pub(crate) fn why_no_copies(&self) -> Option<String> {
        let Uri { shown, is_local, .. } = self.virsh.uri();
        let why =
            || format!("{shown} is another host, and disks are copied to files of the vault's machine only");
        (!is_local).then(why)
    }

    /// The caller holds the machine's lock.
    pub(crate) async fn begin_copy(
        &self,
        machine: MachineId,
        disk: DiskNumber,
        target: &HydrationTarget,
    ) -> Result<(), ComputeError> {
        if let Some(why) = self.why_no_copies() {
            return Err(ComputeError::NotSupported { machine, why });
        }
        let directory = self.machines.directory(machine);
        let (mut state, _) = self.live(machine).await?;
        self.advance(&directory, &mut state).await?;
        let name = self.name_of(machine);
        let device = target_of(&state.spec.disks, disk).ok_or(ComputeError::NoDisk { machine, disk })?;
        let speed = target.bytes_per_second.map_or(0, |speed| speed.max(1)).to_string();
        match asked(&state, disk, target)? {
            Asked::New(_) => {}
            Asked::Copying => {
                let change = ["blockjob", &name, &device, "--bytes", "--bandwidth", &speed];
                return self.virsh.must(&change).await.map(drop);
            }
            Asked::Local => return Ok(()),
        }
        state.copies.retain(|copy| copy.disk != disk);
        state.copies.push(LocalCopy { disk, target: target.clone(), stage: Stage::Copying });
        // Written down before it is there: what is left of a copy that was cut short can be found.
        directory.store(&state)?;
        let path = target.path.to_str().unwrap_or_default();
        let format = match target.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        let mut copy = vec!["blockcopy", &name, &device, "--dest", path, "--format", format];
        copy.extend(["--transient-job", "--bytes", "--bandwidth", &speed]);
        if let Err(why) = self.virsh.ask(&copy).await? {
            remove_file(&target.path)?;
            state.copies.retain(|copy| copy.disk != disk);
            directory.store(&state)?;
            return Err(self.virsh.refused(&copy, why));
        }
        Ok(())
    }

    pub(crate) async fn copies(&self, machine: MachineId) -> Result<Vec<DiskHydration>, ComputeError> {
        let (state, has_power) = match self.observe(&self.machines.directory(machine)).await? {
            Observed::Absent => return Err(ComputeError::NoMachine { machine }),
            Observed::HalfMade => return Ok(Vec::new()),
            Observed::Off(state) => (state, false),
            Observed::Live(state, _) => (state, true),
        };
        let mut all = Vec::new();
        for disk in &state.spec.disks {
            let Some(copy) = state.copy_of(disk.number) else { continue };
            let how_far = match &copy.stage {
                Stage::Failed { why } => HydrationState::Failed { why: why.clone() },
                Stage::Local => HydrationState::Local,
                Stage::Copying => {
                    let known = if has_power { self.progress(&state, disk.number).await? } else { None };
                    let Progress { done, total } = known.unwrap_or(Progress { done: 0, total: disk.bytes });
                    HydrationState::Copying { done_bytes: done, total_bytes: total }
                }
            };
            all.push(DiskHydration { disk: disk.number, path: copy.target.path.clone(), state: how_far });
        }
        Ok(all)
    }

    /// The caller holds the machine's lock.
    pub(crate) async fn end_copy(&self, machine: MachineId, disk: DiskNumber) -> Result<(), ComputeError> {
        let directory = self.machines.directory(machine);
        let (mut state, has_power) = match self.observe(&directory).await? {
            Observed::Absent | Observed::HalfMade => return Ok(()),
            Observed::Off(state) => (state, false),
            Observed::Live(state, _) => (state, true),
        };
        if has_power {
            self.advance(&directory, &mut state).await?;
        }
        match state.copy_of(disk).map(|copy| (copy.stage.clone(), copy.target.path.clone())) {
            None => return Ok(()),
            Some((Stage::Local, _)) => {
                let why = "has moved to its local copy, which cannot be undone".into();
                return Err(ComputeError::Hydration { machine, disk, why });
            }
            Some((Stage::Copying, path)) => {
                if has_power && self.progress(&state, disk).await?.is_some() {
                    let device = target_of(&state.spec.disks, disk).unwrap_or_default();
                    self.virsh.must(&["blockjob", &self.name_of(machine), &device, "--abort"]).await?;
                }
                remove_file(&path)?;
            }
            Some((Stage::Failed { .. }, _)) => {}
        }
        state.copies.retain(|copy| copy.disk != disk);
        directory.store(&state)
    }

    /// Looks after the copies of all machines.
    pub(crate) async fn look_after_copies(&self) -> Result<(), ComputeError> {
        for machine in self.machines.list()? {
            let directory = self.machines.directory(machine);
            let needs_care = |state: &MachineState| {
                state.held || state.copies.iter().any(|copy| copy.stage == Stage::Copying)
            };
            // Whoever asks for the machine learns that what is stored about it is damaged.
            if !matches!(directory.load(), Ok(Some(state)) if needs_care(&state)) {
                continue;
            }
            let lock = self.machines.lock_of(machine);
            let _one_at_a_time = lock.lock().await;
            if let Observed::Live(mut state, _) = self.observe(&directory).await? {
                self.advance(&directory, &mut state).await?;
            }
        }
        Ok(())
    }

    /// Brings every copy as far as it can go now, and lets the guest go if an earlier provider held it.
    async fn advance(
        &self,
        directory: &MachineDirectory,
        state: &mut MachineState,
    ) -> Result<(), ComputeError> {
        let copies = state.copies.clone();
        for copy in copies.iter().filter(|copy| copy.stage == Stage::Copying) {
            match self.progress(state, copy.disk).await? {
                Some(Progress { done, total }) if done == total && total > 0 => {
                    self.move_over(directory, state, copy).await?;
                }
                Some(_) => {}
                None if self.runs_on(state, copy).await? => {
                    set_stage(state, copy.disk, Stage::Local);
                    directory.store(state)?;
                }
                None => self.give_up(directory, state, copy)?,
            }
        }
        if state.held { self.let_go(directory, state).await } else { Ok(()) }
    }

    async fn move_over(
        &self,
        directory: &MachineDirectory,
        state: &mut MachineState,
        copy: &LocalCopy,
    ) -> Result<(), ComputeError> {
        let name = self.name_of(directory.machine);
        let device = target_of(&state.spec.disks, copy.disk).unwrap_or_default();
        state.held = true;
        directory.store(state)?;
        self.virsh.must(&["suspend", &name]).await?;
        let pivot = ["blockjob", name.as_str(), &device, "--pivot"];
        let moved = self.virsh.ask_in(directory.path(), &pivot, START_LIMIT).await?;
        if let Err(why) = &moved {
            tracing::info!(machine = %directory.machine, disk = %copy.disk, %why, "a disk does not move to its local copy yet");
        } else {
            set_stage(state, copy.disk, Stage::Local);
            directory.store(state)?;
            tracing::info!(machine = %directory.machine, disk = %copy.disk, path = %copy.target.path.display(), "a disk moved to its local copy");
        }
        self.let_go(directory, state).await
    }

    async fn let_go(
        &self,
        directory: &MachineDirectory,
        state: &mut MachineState,
    ) -> Result<(), ComputeError> {
        self.virsh.must(&["resume", &self.name_of(directory.machine)]).await?;
        state.held = false;
        directory.store(state)
    }

    /// libvirt ended the copy by itself; the guest goes on with the source.
    fn give_up(
        &self,
        directory: &MachineDirectory,
        state: &mut MachineState,
        copy: &LocalCopy,
    ) -> Result<(), ComputeError> {
        let why = "libvirt or QEMU ended it: see whether the file system of the copy is full".to_owned();
        tracing::warn!(machine = %directory.machine, disk = %copy.disk, %why, "a disk could not be copied");
        remove_file(&copy.target.path)?;
        set_stage(state, copy.disk, Stage::Failed { why });
        directory.store(state)
    }

    /// How far libvirt is with a disk; none if it does not copy it.
    async fn progress(
        &self,
        state: &MachineState,
        disk: DiskNumber,
    ) -> Result<Option<Progress>, ComputeError> {
        let device = target_of(&state.spec.disks, disk).unwrap_or_default();
        let said = self.virsh.must(&["blockjob", &self.name_of(state.spec.id), &device, "--raw"]).await?;
        Ok(progress(&said))
    }

    /// Whether the machine's disk is the copy.
    async fn runs_on(&self, state: &MachineState, copy: &LocalCopy) -> Result<bool, ComputeError> {
        let device = target_of(&state.spec.disks, copy.disk).unwrap_or_default();
        let table = self.virsh.must(&["domblklist", &self.name_of(state.spec.id)]).await?;
        let source = table.lines().find_map(|row| row.trim().strip_prefix(&device)?.strip_prefix(' '));
        Ok(source.map(str::trim) == copy.target.path.to_str())
    }
}

/// From lines such as ` cur=1048576` and ` end=4194304`.
fn progress(said: &str) -> Option<Progress> {
    let number = |name: &str| {
        said.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    Some(Progress { done: number("cur")?, total: number("end")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_a_copy_is_understood() {
        let said = " type=Block Copy\n bandwidth=0\n cur=1048576\n end=4194304\n";
        assert_eq!(progress(said), Some(Progress { done: 1 << 20, total: 4 << 20 }));
        assert_eq!(progress("\n"), None);
    }
}
