//! Where a machine's devices are attached: the same places under every provider that runs QEMU.
//!
//! They are fixed so that a guest's network interfaces keep their names whatever its disks are.

/// The slot of the screen.
pub(crate) const SLOT_VGA: u8 = 0x01;
/// The slot of the first network interface; the others follow.
pub(crate) const SLOT_NIC_FIRST: u8 = 0x02;
/// The slot of the source of random numbers.
pub(crate) const SLOT_RANDOM: u8 = 0x0a;
/// How many network interfaces have a slot.
pub(crate) const NICS_MAX: usize = (SLOT_RANDOM - SLOT_NIC_FIRST) as usize;
const SLOT_DISK_FIRST: u8 = 0x0b;
/// The last slot that the chipset leaves free.
const SLOT_LAST: u8 = 0x1e;
const FUNCTIONS: usize = 8;
const SATA_PORTS: usize = 6;

/// Hands out places for disks: functions of PCI slots, and ports of SATA controllers.
#[derive(Default)]
pub(crate) struct Places {
    functions: usize,
    ports: usize,
}

/// A function of a slot. Function 0 says that there are others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub slot: u8,
    pub function: usize,
}

/// A port of a SATA controller. Controller 0 is the chipset's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SataPort {
    pub controller: usize,
    pub port: usize,
    /// Where the controller itself is attached, when this is the first of its ports.
    pub new_controller: Option<Function>,
}

impl Places {
    /// The next function, or one clause that says that there is none.
    pub(crate) fn function(&mut self) -> Result<Function, String> {
        let (slot, function) = (self.functions / FUNCTIONS, self.functions % FUNCTIONS);
        let slot = u8::try_from(slot).ok().and_then(|slot| SLOT_DISK_FIRST.checked_add(slot));
        match slot.filter(|slot| *slot <= SLOT_LAST) {
            Some(slot) => {
                self.functions += 1;
                Ok(Function { slot, function })
            }
            None => Err(format!("it has more than {} disks", self.functions)),
        }
    }

    /// The next port, or one clause that says that there is none.
    pub(crate) fn sata(&mut self) -> Result<SataPort, String> {
        let (controller, port) = (self.ports / SATA_PORTS, self.ports % SATA_PORTS);
        let new_controller = if controller > 0 && port == 0 { Some(self.function()?) } else { None };
        self.ports += 1;
        Ok(SataPort { controller, port, new_controller })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_order_and_end() {
        let mut places = Places::default();
        for number in 0..12 {
            let place = places.sata().unwrap();
            assert_eq!((place.controller, place.port), (number / 6, number % 6));
            assert_eq!(place.new_controller.is_some(), number == 6);
        }
        assert_eq!(places.function().unwrap(), Function { slot: SLOT_DISK_FIRST, function: 1 });
        let more = (0..).take_while(|_| places.function().is_ok()).count();
        assert_eq!(more, 20 * FUNCTIONS - 2);
        assert!(places.function().unwrap_err().contains("more than 160 disks"));
    }
}
