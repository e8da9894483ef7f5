//! Which faults a run has.

use rand::Rng;
use rand::rngs::StdRng;

/// Which faults a run has. Runs differ in this too: a run with everything rarely gets far with anything.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// A request between two roles fails before or after it was done.
    pub line: bool,
    /// Streams are cut, sent twice, overtaken.
    pub streams: bool,
    pub agent_crash: bool,
    pub agent_reboot: bool,
    pub record_not_saved: bool,
    /// The agent's state directory is lost.
    pub record_lost: bool,
    pub site_crash: bool,
    pub site_lost: bool,
    /// Files of the spool are damaged.
    pub spool_damage: bool,
    pub vault_crash: bool,
    /// The store fails at some call.
    pub store_calls: bool,
    pub store_full: bool,
    /// Objects are damaged in the store.
    pub store_damage: bool,
    pub partition: bool,
    pub clocks: bool,
    pub catalog_lost: bool,
    pub retention: bool,
    /// Another agent with the same certificate.
    pub clone: bool,
    /// A second process server, to which the agent goes and comes back.
    pub second_site: bool,
    pub resize: bool,
    pub pause: bool,
    /// Servers fail over, and are given back to their sources.
    pub failover: bool,
    /// Two servers rather than one.
    pub two_servers: bool,
    /// A disk so large that its copy takes several parts.
    pub large: bool,
}

impl Faults {
    pub fn draw(random: &mut StdRng) -> Self {
        let mut often = || random.random_bool(0.5);
        let mut faults = Self {
            line: often(),
            streams: often(),
            agent_crash: often(),
            agent_reboot: often(),
            record_not_saved: often(),
            record_lost: often(),
            site_crash: often(),
            site_lost: often(),
            spool_damage: often(),
            vault_crash: often(),
            store_calls: often(),
            store_full: often(),
            store_damage: often(),
            partition: often(),
            clocks: often(),
            catalog_lost: often(),
            retention: true,
            clone: false,
            second_site: false,
            resize: often(),
            pause: often(),
            failover: often(),
            two_servers: often(),
            large: false,
        };
        faults.retention = random.random_bool(0.8);
        faults.record_lost &= random.random_bool(0.4);
        faults.site_lost &= random.random_bool(0.5);
        faults.spool_damage &= random.random_bool(0.5);
        faults.store_damage &= random.random_bool(0.5);
        faults.clone = random.random_bool(0.15);
        faults.second_site = random.random_bool(0.15);
        faults.large = random.random_bool(0.1);
        // One run in twenty shows that all is well when nothing goes wrong.
        if random.random_ratio(1, 20) { Self::none() } else { faults }
    }

    pub const fn none() -> Self {
        Self {
            line: false,
            streams: false,
            agent_crash: false,
            agent_reboot: false,
            record_not_saved: false,
            record_lost: false,
            site_crash: false,
            site_lost: false,
            spool_damage: false,
            vault_crash: false,
            store_calls: false,
            store_full: false,
            store_damage: false,
            partition: false,
            clocks: false,
            catalog_lost: false,
            retention: true,
            clone: false,
            second_site: false,
            resize: false,
            pause: false,
            failover: false,
            two_servers: false,
            large: false,
        }
    }
}
