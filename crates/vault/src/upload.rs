//! Grants, and the vault's own endpoint for what they allow.

use std::collections::BTreeMap;
use std::fmt::Display;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use jiff::{SignedDuration, Timestamp};
use lifeboat_hrl::{FileIdentity, FileVerifier, HrlError, KeyId, Problem, Verified};
use lifeboat_model::{DiskNumber, ServerId, VaultId};
use lifeboat_wire::process_server::{FileDescription, Grant, GrantRequest};
use lifeboat_wire::process_server_path;
use serde::{Deserialize, Serialize};

use crate::catalog::UploadRow;
use crate::commit_rules::{BYTES_MAX, CommitRefusal};
use crate::error::{UploadRefusal, VaultError};
use crate::store::{ObjectWriter, StoreError};
use crate::vault::Vault;

/// How long a grant holds. The upload must begin within it, not end.
const GRANT_TIME: SignedDuration = SignedDuration::from_hours(1);

/// What a grant allows.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    server: ServerId,
    object: String,
    file: FileDescription,
    process_server: String,
}

impl Vault {
    /// Leave for a process server to upload one file.
    ///
    /// # Errors
    /// When the disk is not known, the store has no room for the file, or another content is
    /// committed under its name.
    pub async fn grant(
        &self,
        process_server: &str,
        request: &GrantRequest,
        now: Timestamp,
    ) -> Result<Grant, VaultError> {
        let (server, file) = (request.server, &request.file);
        if file.bytes == 0 || file.bytes > BYTES_MAX || file.plain_bytes > BYTES_MAX {
            return Err(VaultError::Invalid(format!("a file cannot have {} bytes", file.bytes)));
        }
        self.refuse_fenced(server).await?;
        let disks = self.catalog.disks(server).await?;
        if disks.is_empty() {
            return Err(CommitRefusal::ServerUnknown(server).into());
        }
        if !disks.iter().any(|disk| disk.disk == file.disk) {
            return Err(CommitRefusal::DiskUnknown(file.disk).into());
        }
        let object = self.names.file(server, file.disk, file.epoch, file.part, &file.digest);
        let expires = now.saturating_add(GRANT_TIME).unwrap_or(now);
        let claims = Claims { server, object, file: file.clone(), process_server: process_server.to_owned() };
        if self.is_stored(&claims).await? {
            return Ok(Grant { stored: true, url: String::new(), headers: BTreeMap::new(), expires });
        }
        if self.store.free_bytes().is_some_and(|free| free < file.bytes) {
            let (object, store) = (claims.object, self.store.url().to_owned());
            return Err(StoreError::Full { action: "take", object, store }.into());
        }
        let bytes = serde_json::to_vec(&claims).map_err(|error| VaultError::Invalid(error.to_string()))?;
        let token = self.grant_key.sign(&bytes, expires).map_err(UploadRefusal::from)?;
        let url = process_server_path::OBJECT.replace("{token}", &token);
        Ok(Grant { stored: false, url, headers: BTreeMap::new(), expires })
    }

    /// Whether an object was received whole and is still there.
    async fn is_stored(&self, claims: &Claims) -> Result<bool, VaultError> {
        let known = match self.catalog.file(&claims.object).await? {
            Some(file) if file.digest != claims.file.digest => {
                return Err(UploadRefusal::Taken { object: claims.object.clone() }.into());
            }
            Some(file) => Some((file.bytes, file.digest)),
            None => self.catalog.upload(&claims.object).await?.map(|upload| (upload.bytes, upload.digest)),
        };
        Ok(known == Some((claims.file.bytes, claims.file.digest))
            && self.store.size(&claims.object).await? == Some(claims.file.bytes))
    }

    /// Receives a granted object. It is visible, durable and known as checked when this returns,
    /// and otherwise there is nothing of it.
    ///
    /// # Errors
    /// When the grant is not honoured, the content is not what it names, or store or catalog fail.
    pub async fn receive<E: Display>(
        &self,
        process_server: &str,
        token: &str,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let claims = self.grant_key.verify(token, now).map_err(UploadRefusal::from)?;
        let claims: Claims = serde_json::from_slice(&claims)
            .map_err(|_| UploadRefusal::Grant(lifeboat_trust::GrantError::Malformed))?;
        if claims.process_server != process_server {
            let (granted, caller) = (claims.process_server, process_server.to_owned());
            return Err(UploadRefusal::Foreign { granted, caller }.into());
        }
        let mut writer = self.store.begin(&claims.object).await?;
        let received = match copy(&claims, body, &mut writer).await {
            Ok(verified) => self.judge(&claims, &verified).await,
            Err(error) => Err(error),
        };
        match received {
            Ok(()) => writer.finish().await?,
            Err(error) => {
                writer.abort().await;
                return Err(error);
            }
        }
        let upload = UploadRow { bytes: claims.file.bytes, digest: claims.file.digest, stored: now };
        Ok(self.catalog.put_upload(claims.server, &claims.object, &upload).await?)
    }
}

impl Vault {
    async fn judge(&self, claims: &Claims, verified: &Verified) -> Result<(), VaultError> {
        let keys = self.key_ids(claims.server, claims.file.disk).await?;
        let judged = check_file(verified, self.id(), claims.server, &claims.file, &keys);
        Ok(judged.map_err(|fault| damaged(&claims.object, &fault))?)
    }

    /// The keys that a disk's files may be encrypted with, the newest last.
    pub(crate) async fn key_ids(&self, server: ServerId, disk: DiskNumber) -> Result<Vec<KeyId>, VaultError> {
        let keys = self.catalog.disk_keys(server).await?;
        Ok(keys.iter().filter(|row| row.disk == disk).map(|row| row.wrapped.id()).collect())
    }
}

/// Writes a body to the store while it is checked.
async fn copy<E: Display>(
    claims: &Claims,
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    writer: &mut ObjectWriter,
) -> Result<Verified, VaultError> {
    let (object, bytes) = (&claims.object, claims.file.bytes);
    let mut verifier = FileVerifier::new();
    let mut received = 0;
    while let Some(piece) = body.next().await {
        let Ok(piece) = piece.inspect_err(|error| tracing::debug!(object, %error, "an upload broke off"))
        else {
            return Err(UploadRefusal::CutOff { object: object.clone(), bytes, received }.into());
        };
        received += piece.len() as u64;
        if received > bytes {
            return Err(UploadRefusal::TooLong { object: object.clone(), bytes }.into());
        }
        verifier.update(&piece).map_err(|fault| damaged(object, &fault))?;
        writer.write(piece).await?;
    }
    if received < bytes {
        return Err(UploadRefusal::CutOff { object: object.clone(), bytes, received }.into());
    }
    Ok(verifier.finish().map_err(|fault| damaged(object, &fault))?)
}

fn damaged(object: &str, fault: &HrlError) -> UploadRefusal {
    UploadRefusal::Damaged { object: object.to_owned(), why: fault.to_string() }
}

/// Whether a whole file is the one that was described: of that disk, epoch and part, with that
/// digest, and readable with a key that the vault has.
pub(crate) fn check_file(
    verified: &Verified,
    vault: VaultId,
    server: ServerId,
    file: &FileDescription,
    keys: &[KeyId],
) -> Result<(), HrlError> {
    let header = &verified.header;
    header.expect(&FileIdentity {
        vault,
        server,
        disk: file.disk,
        first_epoch: file.epoch,
        last_epoch: file.epoch,
        part: file.part,
        disk_bytes: header.identity.disk_bytes,
    })?;
    if verified.summary.digest != file.digest {
        let (expected, found) = (file.digest, verified.summary.digest);
        return Err(Problem::FileDigest { expected, found }.into());
    }
    match keys.last() {
        Some(given) if !keys.contains(&header.key_id) => {
            Err(Problem::WrongKey { expected: header.key_id, given: *given }.into())
        }
        _ => Ok(()),
    }
}
