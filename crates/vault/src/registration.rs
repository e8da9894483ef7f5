//! Servers and disks: how they become known, change and go.

use jiff::Timestamp;
use lifeboat_hrl::{DiskKey, KeyOwner};
use lifeboat_model::{DiskNumber, ReplicationPolicy, ServerId};
use lifeboat_wire::agent::DiskDescription;
use lifeboat_wire::event::{Event, Severity};
use lifeboat_wire::process_server::DiskRegistration;

use crate::catalog::{DiskKeyRow, DiskRow, ServerRow};
use crate::commit_rules::{BYTES_MAX, Removed};
use crate::error::VaultError;
use crate::manifest::{self, NamedServer, ServerManifest, VaultManifest};
use crate::random;
use crate::vault::{ServerProgress, Vault, unknown};

const NAME_CHARS_MAX: usize = 253;
const PATH_CHARS_MAX: usize = 1024;

impl Vault {
    /// Makes a disk known, and its server with the first one, or describes it anew. A disk that
    /// was removed is protected again.
    ///
    /// The disk's key is handed out only after the store has it (wrapped): a file must never be
    /// encrypted with a key that a lost catalog takes along.
    ///
    /// # Errors
    /// When the description cannot be meant, or store or catalog fail.
    pub async fn register_disk(
        &self,
        process_server: &str,
        server: ServerId,
        disk: DiskNumber,
        description: &DiskDescription,
        now: Timestamp,
    ) -> Result<DiskRegistration, VaultError> {
        check_description(description)?;
        // One at a time, so that no two servers take the same name.
        let mut vault_described = self.registration.lock().await;
        let lock = self.server_lock(server);
        let mut progress = lock.lock().await;
        let known = self.catalog.server(server).await?;
        let name = self.free_name(server, &description.server_name, now).await?;
        let row = DiskRow {
            disk,
            path: description.path.clone(),
            hardware_id: description.hardware_id.clone(),
            bytes: description.bytes,
            removed: false,
        };
        let is_renamed = known.as_ref().is_none_or(|known| known.name != name);
        let is_changed = !self.catalog.disks(server).await?.contains(&row);
        if is_renamed || is_changed {
            progress.described = false;
            self.put_disk(server, &name, &row, now).await?;
        }
        if !progress.described {
            self.write_server_manifest(server).await?;
            progress.described = true;
        }
        drop(progress);
        if is_renamed || !*vault_described {
            *vault_described = false;
            self.write_vault_manifest().await?;
            *vault_described = true;
        }
        drop(vault_described);
        if known.is_none() {
            self.note_new_server(server, &name, now).await?;
        }
        self.route(server, process_server).await?;
        self.changed();
        self.registration_of(server, disk).await
    }

    async fn put_disk(
        &self,
        server: ServerId,
        name: &str,
        disk: &DiskRow,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let has_key = self.catalog.disk_keys(server).await?.iter().any(|key| key.disk == disk.disk);
        let mut transaction = self.catalog.begin().await?;
        let policy = ReplicationPolicy::default();
        self.catalog.put_server(&mut transaction, server, name, &policy, now).await?;
        self.catalog.put_disk(&mut transaction, server, disk).await?;
        if !has_key {
            let key = DiskKey::new(*random::key(self.randomness.as_ref())?);
            let owner = KeyOwner { vault: self.id(), server, disk: disk.disk };
            let wrapped = self.state.master_key().wrap(&owner, &key);
            let row = DiskKeyRow { disk: disk.disk, wrapped, created: now };
            self.catalog.put_disk_key(&mut transaction, server, &row).await?;
        }
        Ok(self.catalog.commit(transaction).await?)
    }

    async fn registration_of(
        &self,
        server: ServerId,
        disk: DiskNumber,
    ) -> Result<DiskRegistration, VaultError> {
        let key = self.disk_key(server, disk, None).await?;
        let committed = self.catalog.committed_epochs(server).await?.remove(&disk);
        Ok(DiskRegistration {
            vault: self.id(),
            key_id: key.id().to_string(),
            key: key.expose().iter().map(|byte| format!("{byte:02x}")).collect(),
            committed: committed.map(|(point, row)| (point, row.epoch)),
            committed_bytes: committed.map(|(_, row)| row.bytes),
        })
    }

    /// The name that a server wants, or one made from it when another server has that.
    async fn free_name(&self, server: ServerId, wanted: &str, now: Timestamp) -> Result<String, VaultError> {
        let servers = self.catalog.servers().await?;
        let is_taken = |name: &str| servers.iter().any(|row| row.name == name && row.id != server);
        if !is_taken(wanted) {
            return Ok(wanted.to_owned());
        }
        let id = server.to_string();
        let short = format!("{wanted}-{}", &id[..8]);
        let name = if is_taken(&short) { format!("{wanted}-{id}") } else { short };
        if !servers.iter().any(|row| row.id == server && row.name == name) {
            self.note(Event {
                time: now,
                severity: Severity::Information,
                code: "server_name_taken".into(),
                server: Some(server),
                disk: None,
                message: format!("Another server is called {wanted} already; this one is listed as {name}."),
                next_step: String::new(),
            })
            .await?;
        }
        Ok(name)
    }

    async fn note_new_server(&self, server: ServerId, name: &str, now: Timestamp) -> Result<(), VaultError> {
        tracing::info!(%server, name, "a new server is protected");
        self.note(Event {
            time: now,
            severity: Severity::Information,
            code: "server_added".into(),
            server: Some(server),
            disk: None,
            message: format!("The server {name} is protected from now on; its first copy follows."),
            next_step: String::new(),
        })
        .await
    }

    /// Takes a disk out of protection: points need not have it any more. Points that have it stay.
    ///
    /// # Errors
    /// When there is no such disk, or store or catalog fail.
    pub async fn remove_disk(
        &self,
        server: ServerId,
        disk: DiskNumber,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let lock = self.server_lock(server);
        let mut progress = lock.lock().await;
        let disks = self.catalog.disks(server).await?;
        if !disks.iter().any(|row| row.disk == disk && !row.removed) {
            let known = disks.iter().filter(|row| !row.removed).map(|row| row.disk.to_string()).collect();
            return Err(unknown("protected disk", &disk.to_string(), known));
        }
        progress.described = false;
        self.catalog.set_disk_removed(server, disk, true).await?;
        self.write_server_manifest(server).await?;
        progress.described = true;
        drop(progress);
        let next_step = "Take the disk out of the agent's settings too; otherwise the agent brings it back.";
        self.note(disk_removed(server, disk, "an operator removed it", next_step, now)).await?;
        self.changed();
        Ok(())
    }

    /// Takes disks out of protection, or back into it, as the agent's settings have it now.
    pub(crate) async fn change_disks(
        &self,
        server: ServerId,
        changes: Vec<(DiskNumber, Removed)>,
        progress: &mut ServerProgress,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        if changes.is_empty() {
            return Ok(());
        }
        progress.described = false;
        for (disk, removed) in &changes {
            self.catalog.set_disk_removed(server, *disk, *removed == Removed::Yes).await?;
        }
        self.write_server_manifest(server).await?;
        progress.described = true;
        for (disk, removed) in changes {
            if removed == Removed::Yes {
                self.note(disk_removed(server, disk, "the agent's settings name it no longer", "", now))
                    .await?;
            }
        }
        Ok(())
    }

    /// Replaces a server's policy.
    ///
    /// # Errors
    /// When the policy cannot be meant, there is no such server, or store or catalog fail.
    pub async fn set_policy(&self, server: ServerId, policy: &ReplicationPolicy) -> Result<(), VaultError> {
        check_policy(policy).map_err(VaultError::Invalid)?;
        let lock = self.server_lock(server);
        let mut progress = lock.lock().await;
        progress.described = false;
        if !self.catalog.set_policy(server, policy).await? {
            return Err(unknown("server", &server.to_string(), Vec::new()));
        }
        self.write_server_manifest(server).await?;
        progress.described = true;
        drop(progress);
        self.changed();
        Ok(())
    }

    /// Notes through which process server a server is seen, when that is new.
    pub(crate) async fn route(&self, server: ServerId, process_server: &str) -> Result<(), VaultError> {
        let known = self.catalog.server(server).await?;
        if known.is_some_and(|known| known.process_server.as_deref() != Some(process_server)) {
            self.catalog.route(server, process_server).await?;
            self.changed();
        }
        Ok(())
    }

    /// What the catalog has of a server, as its manifest tells it.
    pub(crate) async fn server_manifest(&self, server: ServerId) -> Result<ServerManifest, VaultError> {
        let row = self.catalog.server(server).await?;
        let ServerRow { id, name, policy, registered, .. } =
            row.ok_or_else(|| unknown("server", &server.to_string(), Vec::new()))?;
        Ok(ServerManifest {
            server: id,
            name,
            registered,
            policy,
            disks: self.catalog.disks(server).await?,
            keys: self.catalog.disk_keys(server).await?,
        })
    }

    async fn write_server_manifest(&self, server: ServerId) -> Result<(), VaultError> {
        let object = self.names.server(server);
        let manifest = self.server_manifest(server).await?;
        let bytes = manifest::encode(&self.manifest_key, &object, &manifest)?;
        Ok(self.store.replace(&object, bytes).await?)
    }

    pub(crate) async fn write_vault_manifest(&self) -> Result<(), VaultError> {
        let servers = self.catalog.servers().await?;
        let servers = servers.into_iter().map(|row| NamedServer { server: row.id, name: row.name });
        let manifest = VaultManifest { vault: self.id(), created: self.created, servers: servers.collect() };
        let object = self.names.vault();
        let bytes = manifest::encode(&self.manifest_key, &object, &manifest)?;
        Ok(self.store.replace(&object, bytes).await?)
    }
}

fn disk_removed(server: ServerId, disk: DiskNumber, why: &str, next_step: &str, now: Timestamp) -> Event {
    Event {
        time: now,
        severity: Severity::Information,
        code: "disk_removed".into(),
        server: Some(server),
        disk: Some(disk),
        message: format!("Disk {disk} is not protected any more, since {why}; the points that have it stay."),
        next_step: next_step.to_owned(),
    }
}

fn check_description(description: &DiskDescription) -> Result<(), VaultError> {
    let is_text = |text: &str, chars_max: usize| {
        !text.is_empty() && text.chars().count() <= chars_max && !text.chars().any(char::is_control)
    };
    let refused =
        |what: &str| Err(VaultError::Invalid(format!("the disk's description has no usable {what}")));
    if !is_text(&description.server_name, NAME_CHARS_MAX) {
        return refused("server name");
    }
    if !is_text(&description.path, PATH_CHARS_MAX) {
        return refused("path");
    }
    if description.hardware_id.as_ref().is_some_and(|id| !is_text(id, PATH_CHARS_MAX)) {
        return refused("hardware id");
    }
    if description.bytes == 0 || description.bytes > BYTES_MAX {
        return refused("size");
    }
    Ok(())
}

/// Whether a policy can be meant; otherwise a sentence that says why not.
fn check_policy(policy: &ReplicationPolicy) -> Result<(), String> {
    const RULES_MAX: usize = 32;
    let second = std::time::Duration::from_secs(1);
    let day = 86_400 * second;
    if policy.interval.duration() < second || policy.interval.duration() > day {
        return Err(format!("the interval must be 1s to 1d, not {}", policy.interval));
    }
    if policy.filesystem_interval.is_some_and(|interval| interval.duration() < 60 * second) {
        return Err("the file-system-consistent interval must be at least 1m".into());
    }
    if policy.capture_timeout.duration() < second || policy.capture_timeout.duration() > day {
        return Err(format!("the capture timeout must be 1s to 1d, not {}", policy.capture_timeout));
    }
    if policy.copy_bytes_per_second == Some(0) {
        return Err("a limit of 0 bytes a second would never end; leave it out for no limit".into());
    }
    if policy.retention.is_empty() || policy.retention.len() > RULES_MAX {
        return Err(format!("the retention needs 1 to {RULES_MAX} rules"));
    }
    for pair in policy.retention.windows(2) {
        if pair[1].until <= pair[0].until {
            return Err(format!(
                "retention rules go from the newest to the oldest: {} cannot follow {}",
                pair[1].until, pair[0].until
            ));
        }
    }
    match policy.retention.iter().find(|rule| rule.every.is_some_and(|every| every.duration() < second)) {
        Some(rule) => {
            Err(format!("the retention rule until {} keeps more than one point a second", rule.until))
        }
        None => Ok(()),
    }
}
