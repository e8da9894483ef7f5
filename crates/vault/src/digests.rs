//! Digests of a copy, with which an agent finds the blocks that differ.

use lifeboat_model::{DiskNumber, Epoch, ServerId};
use lifeboat_volume::{DigestStream, block_digests, chunk_digests};
use lifeboat_wire::agent::DigestsOf;
use lifeboat_wire::process_server::DigestRequest;

use crate::catalog::StoredFile;
use crate::commit_rules::CommitRefusal;
use crate::error::{LookupError, VaultError};
use crate::vault::unknown;
use crate::volumes::{Volumes, VolumesError};

/// Chunks whose blocks one request may ask for.
const CHUNKS_MAX: usize = 4096;

impl Volumes {
    /// The digests that an agent asks for: of a point, or of the newest point that has the disk
    /// with the files that lie over it.
    ///
    /// # Errors
    /// When there is no such point or disk, a file is not stored, or one cannot be read.
    pub async fn digests(
        &self,
        server: ServerId,
        disk: DiskNumber,
        request: &DigestRequest,
    ) -> Result<DigestStream, VolumesError> {
        if let DigestsOf::Blocks { chunks } = &request.of
            && chunks.len() > CHUNKS_MAX
        {
            let message = format!("digests of at most {CHUNKS_MAX} chunks can be asked for at once");
            return Err(VaultError::Invalid(message).into());
        }
        let vault = self.vault();
        let known = vault.catalog().disks(server).await.map_err(VaultError::from)?;
        let Some(row) = known.iter().find(|row| row.disk == disk) else {
            return Err(unknown("disk", &disk.to_string(), Vec::new()).into());
        };
        // Not the server's newest point, which need not have the disk: one that was taken out of
        // protection and is back goes on with its own last epoch.
        let newest = vault.catalog().committed_epochs(server).await.map_err(VaultError::from)?;
        let point = request.point.or(newest.get(&disk).map(|(point, _)| *point));
        let (mut bytes, mut files) = (row.bytes, Vec::new());
        let mut epoch = Epoch(0);
        if let Some(point) = point {
            let (point, of_point) = match vault.files_of_point(point, disk).await {
                Err(VaultError::Lookup(LookupError::Unknown { what: "point", .. })) => {
                    return Err(vault.no_such_point(server, &point.to_string()).await.into());
                }
                found => found?,
            };
            if point.server != server {
                return Err(unknown("point", &point.id.to_string(), Vec::new()).into());
            }
            if let Some(of_point) = point.disks.iter().find(|of_point| of_point.disk == disk) {
                (bytes, epoch) = (of_point.bytes, of_point.epoch);
            }
            files = of_point;
        }
        if request.point.is_none() {
            // The copy that goes on is as large as the disk is now.
            bytes = row.bytes;
            for file in request.open_files.iter().filter(|file| file.disk == disk && file.epoch > epoch) {
                files.push(self.open_file(server, file).await?);
            }
        }
        let source = vault.disk_source(server, disk, bytes, &files).await?;
        let opened = self.read_disk_again(source).await;
        let opened = opened.map_err(|source| VolumesError::Unreadable { disk, source })?;
        Ok(match &request.of {
            DigestsOf::Chunks { first, count } => chunk_digests(&opened, *first, *count),
            DigestsOf::Blocks { chunks } => block_digests(&opened, chunks.clone()),
        })
    }

    /// A file that no point has yet, which must be stored.
    async fn open_file(
        &self,
        server: ServerId,
        file: &lifeboat_wire::process_server::FileDescription,
    ) -> Result<StoredFile, VolumesError> {
        let vault = self.vault();
        let (disk, epoch, part) = (file.disk, file.epoch, file.part);
        let object = vault.names().file(server, disk, epoch, part, &file.digest);
        let size = vault.store().size(&object).await.map_err(VaultError::from)?;
        if size != Some(file.bytes) {
            return Err(VaultError::from(CommitRefusal::FileMissing { disk, epoch, part }).into());
        }
        Ok(StoredFile {
            disk,
            first_epoch: epoch,
            last_epoch: epoch,
            part,
            object,
            bytes: file.bytes,
            digest: file.digest,
            plain_bytes: file.plain_bytes,
        })
    }
}
