//! The addresses of this server's interfaces, asked of the kernel (rtnetlink).

use std::io;
use std::net::IpAddr;

use lifeboat_wire::facts::Address;
use rustix::net::{RecvFlags, SendFlags};

use crate::rtnetlink::{self, NLMSG_ERROR};

/// From the kernel's `linux/rtnetlink.h`, `linux/netlink.h` and `linux/if_addr.h`.
const RTM_GETADDR: u16 = 22;
const RTM_NEWADDR: u16 = 20;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
const SCOPE_UNIVERSE: u8 = 0;

/// Bytes of one answer of the kernel, which has many messages.
const ANSWER_BYTES: usize = 64 << 10;
/// Answers that are taken.
const ANSWERS_MAX: usize = 1000;

/// An address and the number of the interface that has it.
pub(super) type Numbered = (u32, Address);

/// All addresses that reach beyond a link. One that the kernel will drop after a time is not fixed.
pub(super) fn of_this_server() -> Result<Vec<Numbered>, String> {
    ask().map_err(|error| format!("the kernel does not tell its addresses: {error}"))
}

fn ask() -> io::Result<Vec<Numbered>> {
    let socket = rtnetlink::connect()?;
    let mut request = Vec::with_capacity(24);
    // The header: length, kind, flags, number, sender; then an empty address.
    request.extend(24_u32.to_ne_bytes());
    request.extend(RTM_GETADDR.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 16]);
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    let mut found = Vec::new();
    let mut answer = vec![0; ANSWER_BYTES];
    for _ in 0..ANSWERS_MAX {
        let (_, length) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
        if read(&answer[..length.min(ANSWER_BYTES)], &mut found)? {
            return Ok(found);
        }
    }
    Err(io::Error::other("it has too many"))
}

/// Reads the messages of one answer; true when the last one was among them.
fn read(answer: &[u8], found: &mut Vec<Numbered>) -> io::Result<bool> {
    let mut rest = answer;
    while let Some(header) = rest.first_chunk::<16>() {
        let (length, kind) = (u32_at(header, 0) as usize, u16_at(header, 4));
        let Some(body) = rest.get(16..length) else {
            return Err(io::Error::other("an answer is cut off"));
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            RTM_NEWADDR => found.extend(address(body)),
            _ => {}
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// A message begins with family, prefix, flags, scope and the interface's number; attributes follow.
fn address(body: &[u8]) -> Option<Numbered> {
    let fixed = body.first_chunk::<8>()?;
    let (prefix, mut flags, scope, index) = (fixed[1], u32::from(fixed[2]), fixed[3], u32_at(fixed, 4));
    let (mut own, mut local) = (None, None);
    let mut rest = &body[8..];
    while let Some(header) = rest.first_chunk::<4>() {
        let (length, kind) = (usize::from(u16_at(header, 0)), u16_at(header, 2));
        let value = rest.get(4..length)?;
        match kind {
            IFA_ADDRESS => own = ip(value),
            IFA_LOCAL => local = ip(value),
            IFA_FLAGS => flags = value.first_chunk::<4>().map_or(flags, |value| u32::from_ne_bytes(*value)),
            _ => {}
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    // Of a link between two, the one is the other end's.
    let address = local.or(own).filter(|_| scope == SCOPE_UNIVERSE)?;
    Some((index, Address { address, prefix, fixed: flags & IFA_F_PERMANENT != 0 }))
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}

const fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_kernel_tells_the_addresses_that_ip_shows() {
        let output =
            Command::new("ip").args(["-json", "address", "show", "scope", "global"]).output().unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut expected: Vec<String> = Vec::new();
        for interface in shown.as_array().unwrap() {
            for address in interface["addr_info"].as_array().into_iter().flatten() {
                // Of an interface whose addresses are all passed over, ip shows empty ones.
                let Some(local) = address["local"].as_str() else { continue };
                expected.push(format!("{} {local}/{}", interface["ifindex"], address["prefixlen"]));
            }
        }
        let told = of_this_server().unwrap();
        let mut told: Vec<_> =
            told.iter().map(|(index, of)| format!("{index} {}/{}", of.address, of.prefix)).collect();
        expected.sort();
        told.sort();
        assert_eq!(told, expected);
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, &mut Vec::new());
            let mut answer = bytes.clone();
            answer.splice(..0, [u32::try_from(16 + bytes.len()).unwrap().to_ne_bytes(), [20, 0, 0, 0], [0; 4], [0; 4]].concat());
            let _ = read(&answer, &mut Vec::new());
        }
    }
}
