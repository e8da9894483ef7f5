//! The vocabulary of Lifeboat: identifiers, blocks, points, policies.
//!
//! Everything here is plain data. Nothing reads a clock, draws a random number or does
//! input or output; who needs those takes them as parameters.

mod block;
mod block_set;
mod card_change;
mod copy_identity;
mod digest;
mod human;
mod id;
mod ipv4_subnet;
mod mac_address;
mod point;
mod policy;
mod smbios;

pub use block::{BLOCK_BYTES, Extent, FRAME_BLOCKS, FRAME_BYTES, blocks_of_bytes};
pub use block_set::BlockSet;
pub use card_change::{AddressChange, CardChange, CardChangeError, InterfaceName, InterfaceNameError};
pub use copy_identity::{
    CopyIdentity, CopyIdentityError, Purpose, SMBIOS_MANUFACTURER, SMBIOS_PRODUCT, is_recovery_copy,
};
pub use digest::{BlockDigest, Digest};
pub use human::{ByteCount, Milliseconds, Span, SpanError};
pub use id::{
    DiskNumber, Epoch, IdError, JobId, MachineId, NetworkId, Part, PointId, ServerId, VaultId, VolumeId,
};
pub use ipv4_subnet::{Ipv4Subnet, Ipv4SubnetError};
pub use mac_address::{MacAddress, MacAddressError};
pub use point::PointKind;
pub use policy::{ReplicationPolicy, RetentionRule};
