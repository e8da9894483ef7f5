//! The process server: the replication gateway at the protected site.
//!
//! ```text
//! agents ──parts, points──▶ handlers ─▶ receiver ─▶ gateway ─▶ spool
//!                                                      │
//!                              vault ◀── link ◀── uploader, courier
//! ```
//!
//! - [`Gateway`] is the core and carries the promises; it knows neither HTTP nor a clock.
//! - The receiver turns the body of a request into a durable HRL file.
//! - The uploader brings files to the vault, in parallel, and commits points, in order.
//! - The courier carries reports, events, results and assignments.
//! - [`VaultLink`] is the vault as seen from here; tests put another one in its place.
//!
//! [`serve`] puts them together. [`set_aside`] is the operator's way out when the spool is damaged.

mod agents;
mod assignments;
mod bandwidth;
mod clock;
mod courier;
mod gateway;
mod handlers;
mod http_link;
mod link;
mod outbox;
mod queue;
mod rate;
mod receiver;
mod refusal;
mod schedule;
mod sealing_pool;
mod serve;
mod set_aside;
mod settings;
mod space;
mod spool;
mod state_dir;
mod uploader;
mod write_behind;

pub use clock::Clock;
pub use gateway::{Behind, Gateway, PartPlace, PartTicket, Pauses, Snapshot, UploadError, WriterClaim};
pub use link::{LinkError, Pace, VaultLink};
pub use queue::Upload;
pub use receiver::MESSAGES_PER_PART_MAX;
pub use refusal::Refusal;
pub use schedule::{BandwidthWindow, Day, TimeOfDay, TimeOfDayError};
pub use serve::{ProcessServerError, serve};
pub use set_aside::set_aside;
pub use settings::{Settings, SettingsError, SpoolSettings, UploadSettings};
pub use space::Space;
pub use spool::{FileKey, SealedPoint};
pub use state_dir::{StateDir, StateError};
