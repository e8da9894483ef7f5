//! The catalog: what the vault knows, in tables.
//!
//! Everything that is SQLite's own is in [`database`]; the statements elsewhere are plain SQL that
//! PostgreSQL takes as well. A change is made in one transaction, and is on the disk when the
//! method returns. There is one writer at a time.

mod checks;
pub(crate) mod database;
mod drills;
mod error;
mod events;
mod facts;
mod jobs;
mod maintenance;
mod networks;
mod points;
mod recoveries;
mod requests;
mod row;
mod servers;
mod uploads;
mod volumes;

pub use checks::{DamagedFile, DueFile};
pub use database::Catalog;
pub use drills::DrillScheduleRow;
pub use error::CatalogError;
pub use events::Acknowledged;
pub use facts::FactsRow;
pub use jobs::{JobRow, StepRow};
pub use maintenance::{RetentionChange, RetiredObject};
pub use networks::{NetworkMappingRow, NetworkRow, NetworkWhat};
pub use points::{Newest, PointFilter};
pub use recoveries::RecoveryRow;
pub use requests::RequestRow;
pub use row::{
    DiskKeyRow, DiskRow, LostFiles, PointDiskRow, PointRow, RemovedPoint, ServerRow, ServerTotals, StoredFile,
};
pub use uploads::UploadRow;
pub use volumes::VolumeRow;
