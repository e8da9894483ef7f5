//! Orders to the kernel about network interfaces (rtnetlink).

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SendFlags};

use crate::rtnetlink::{self, NLMSG_ERROR};

/// From the kernel's `linux/rtnetlink.h`, `linux/netlink.h` and `linux/if_link.h`.
const RTM_SETLINK: u16 = 19;
const RTM_DELLINKPROP: u16 = 109;
const NLM_F_REQUEST_ACK: u16 = 0x5;
const NLA_F_NESTED: u16 = 0x8000;
const IFLA_IFNAME: u16 = 3;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
pub(super) const IFF_UP: u32 = 1;

/// A connection to the kernel.
pub(super) struct Links(OwnedFd);

impl Links {
    pub fn open() -> io::Result<Self> {
        rtnetlink::connect().map(Self)
    }

    /// Names an interface, which must be down.
    pub fn rename(&self, index: u32, name: &str) -> io::Result<()> {
        self.order(RTM_SETLINK, index, (0, 0), &text(IFLA_IFNAME, name))
    }

    pub fn set_up(&self, index: u32, is_up: bool) -> io::Result<()> {
        self.order(RTM_SETLINK, index, (if is_up { IFF_UP } else { 0 }, IFF_UP), &[])
    }

    /// Takes an alternative name from an interface, if it has that.
    pub fn drop_alternative(&self, index: u32, name: &str) -> io::Result<()> {
        let list = attribute(IFLA_PROP_LIST | NLA_F_NESTED, &text(IFLA_ALT_IFNAME, name));
        self.order(RTM_DELLINKPROP, index, (0, 0), &list)
    }

    /// Sends an order and waits until it is obeyed. `flags` are the interface's and which of them count.
    fn order(&self, kind: u16, index: u32, flags: (u32, u32), attributes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(32 + attributes.len()).map_err(io::Error::other)?;
        let mut order = Vec::with_capacity(32 + attributes.len());
        // The header: length, kind, flags, number, sender.
        order.extend(length.to_ne_bytes());
        order.extend(kind.to_ne_bytes());
        order.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
        order.extend([0; 8]);
        // Family and type of any kind, then which interface.
        order.extend([0; 4]);
        order.extend(index.to_ne_bytes());
        order.extend(flags.0.to_ne_bytes());
        order.extend(flags.1.to_ne_bytes());
        order.extend(attributes);
        rustix::net::send(&self.0, &order, SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (_, length) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        match answer[..length.min(answer.len())] {
            [_, _, _, _, a, b, _, _, _, _, _, _, _, _, _, _, c, d, e, f, ..]
                if u16::from_ne_bytes([a, b]) == NLMSG_ERROR =>
            {
                match i32::from_ne_bytes([c, d, e, f]) {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                }
            }
            _ => Err(io::Error::other("the kernel's answer is none that is known")),
        }
    }
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// Length, kind and value, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // Names are short.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut attribute = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}
