//! The way to the kernel's network interfaces.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A message that says how an order ended; from the kernel's `linux/netlink.h`.
pub(crate) const NLMSG_ERROR: u16 = 2;

/// Connects to rtnetlink.
pub(crate) fn connect() -> io::Result<OwnedFd> {
    let (family, kind, flags) = (AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC);
    // Protocol number 0, which is rtnetlink.
    Ok(rustix::net::socket_with(family, kind, flags, None)?)
}
