//! The vault: catalog, object store, recovery points.
//!
//! [`Vault`] is everything but the network, with the time as a parameter; [`serve`] puts HTTP over
//! mutual TLS around it. How a point comes to exist is told in [`commit`].

mod background_pace;
pub mod catalog;
pub mod commit;
pub mod commit_rules;
mod digests;
mod error;
mod facts;
mod fence;
pub mod http;
pub mod jobs;
mod machines;
pub mod manifest;
mod memory;
mod object_name;
mod open_disks;
mod overview;
pub mod point_time;
mod random;
pub mod readiness;
pub mod rebuild;
mod registration;
mod reports;
mod requests;
pub mod retention;
mod revoked;
pub mod rpo;
mod serve;
pub mod server_state;
mod settings;
mod ssh_identity;
mod state_directory;
mod store;
mod stored_file;
mod target;
mod upload;
mod vault;
pub mod verification;
mod volumes;

pub use error::{LookupError, PointAt, Removal, UploadRefusal, VaultError};
pub use machines::MachinesError;
pub use object_name::ObjectNames;
pub use overview::point as api_point;
pub use random::{NoRandomness, Randomness, SystemRandomness};
pub use requests::request as api_request;
pub use revoked::{Revoked, RevokedError};
pub use serve::{RunningVault, ServeError, serve};
pub use settings::{
    HydrationSettings, MachineProvider, MachineSettings, MergeSettings, NbdSettings, Settings, SettingsError,
};
pub use ssh_identity::SshError;
pub use state_directory::{StateDirectory, StateError};
pub use store::{Created, ObjectWriter, Store, StoreError};
pub use vault::Vault;
pub use volumes::{Volumes, VolumesError};
