//! Netlink: one socket, one message builder, one way to read answers and errors.
//!
//! Knows the framing of RFC 3549 and the kernel's `linux/netlink.h`. Does not know what a link, a route or an nftables
//! rule is: [`crate::rtnl`], [`crate::nft`] and [`crate::conntrack`] put their payloads on this.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::limits;

pub const NETLINK_ROUTE: i32 = 0;
pub const NETLINK_NETFILTER: i32 = 12;

pub const NLM_F_REQUEST: u16 = 0x1;
pub const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_REPLACE: u16 = 0x100;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_CAPPED: u16 = 0x100;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;

/// What the kernel refused, and what it said about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}{}", hint.as_deref().map(|h| format!(" ({h})")).unwrap_or_default())]
pub struct Error {
    pub what: String,
    pub source: io::Error,
    /// The kernel's own words, where it had some.
    pub hint: Option<String>,
}

impl Error {
    pub fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self { what: what.into(), source, hint: None }
    }

    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    /// The thing asked for is not there (a link, a route, a table).
    pub fn is_missing(&self) -> bool {
        matches!(self.errno(), libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL)
    }

    pub fn is_existing(&self) -> bool {
        self.errno() == libc::EEXIST
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// A message under construction: header, a fixed part, attributes.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
    /// An attribute outgrew its 16 bits of length. Sending such a message fails instead of sending nonsense.
    overlong: bool,
}

impl Message {
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        Self { bytes, overlong: false }
    }

    /// The fixed part that follows the header (`ifinfomsg`, `rtmsg`, `nfgenmsg` …).
    pub fn fixed(mut self, part: &[u8]) -> Self {
        self.raw(part);
        self
    }

    pub fn raw(&mut self, part: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(part);
        self.pad()
    }

    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = value.len() + 4;
        self.overlong |= length > usize::from(u16::MAX);
        self.bytes.extend_from_slice(&(length as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad()
    }

    /// A string attribute with its closing NUL.
    pub fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Netfilter's attributes are big-endian.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(self);
        let length = self.bytes.len() - start;
        self.overlong |= length > usize::from(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self
    }

    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    fn pad(&mut self) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub fn with_flags(mut self, flags: u16) -> Self {
        self.add_flags(flags);
        self
    }

    fn add_flags(&mut self, flags: u16) {
        let had = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(had | flags).to_ne_bytes());
    }

    fn write_to(&mut self, out: &mut Vec<u8>, sequence: u32) {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&self.bytes);
    }
}

/// The attributes in a piece of a message, nested or not. Ends at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// An attribute's text, without its closing NUL.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// A socket in the network namespace of the thread that opened it; it may be used from any thread afterwards.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub fn open(protocol: i32) -> Result<Self> {
        let named = |source| Error::new("cannot open a netlink socket", source);
        // SAFETY: a plain system call; the descriptor is owned by nobody else.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(named(io::Error::last_os_error()));
        }
        // SAFETY: just made, and valid.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, sequence: 1 };
        socket.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, limits::NETLINK_RECEIVE_BYTES);
        socket.option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        socket.option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        let patience = libc::timeval { tv_sec: limits::NETLINK_ANSWER.as_secs() as libc::time_t, tv_usec: 0 };
        // SAFETY: the pointer and the length describe `patience`, which lives until the call returns.
        unsafe {
            let length = size_of_val(&patience) as libc::socklen_t;
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const patience).cast(), length);
        }
        Ok(socket)
    }

    /// Options are wishes: a kernel that lacks one still answers, with fewer words or smaller buffers.
    fn option(&self, level: i32, name: i32, value: i32) {
        // SAFETY: the pointer and the length describe `value`, which lives until the call returns.
        unsafe {
            let length = size_of::<i32>() as libc::socklen_t;
            libc::setsockopt(self.fd.as_raw_fd(), level, name, (&raw const value).cast(), length);
        }
    }

    /// Sends one message and waits until the kernel has done it.
    pub fn request(&mut self, what: &str, message: Message) -> Result<()> {
        let mut first = None;
        let mut parts = [(message, String::new())];
        self.exchange(&mut parts, &mut |error| {
            first.get_or_insert(error);
        })?;
        match first {
            Some(mut error) => {
                error.what = what.to_string();
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// Sends messages as one datagram; the last one is acknowledged. Every refusal is handed to `refused` with the label
    /// of its message.
    pub fn exchange(&mut self, messages: &mut [(Message, String)], refused: &mut dyn FnMut(Error)) -> Result<()> {
        let first = self.sequence;
        let mut datagram = Vec::with_capacity(messages.iter().map(|(m, _)| m.size()).sum());
        let count = messages.len() as u32;
        for (n, (message, label)) in messages.iter_mut().enumerate() {
            if message.overlong {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "a netlink attribute is longer than 64 KiB");
                return Err(Error::new(label.clone(), source));
            }
            // Batches end in a marker that older kernels do not acknowledge: the caller asks for it where it wants it.
            if count == 1 {
                message.add_flags(NLM_F_ACK);
            }
            message.write_to(&mut datagram, first.wrapping_add(n as u32));
        }
        let acknowledged = messages.iter().rposition(|(m, _)| u16::from_ne_bytes([m.bytes[6], m.bytes[7]]) & NLM_F_ACK != 0);
        let last = first.wrapping_add(acknowledged.unwrap_or(0) as u32);
        self.sequence = first.wrapping_add(count);
        self.option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, i32::try_from(datagram.len() + (64 << 10)).unwrap_or(i32::MAX));
        self.send(&datagram)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let answer = self.receive(&mut buffer)?;
            for part in parts(answer) {
                let at = part.sequence.wrapping_sub(first);
                if part.kind != NLMSG_ERROR || at >= count {
                    continue;
                }
                if let Some(error) = part.error(&messages[at as usize].1) {
                    let hopeless = at == 0 && count > 1;
                    refused(error);
                    // The batch as a whole failed; nothing else will come.
                    if hopeless {
                        return Ok(());
                    }
                }
                if part.sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// Asks for a list and hands every part's payload (fixed part and attributes) to `each`.
    pub fn dump(&mut self, what: &str, mut message: Message, each: &mut dyn FnMut(u16, &[u8])) -> Result<()> {
        message.add_flags(NLM_F_DUMP);
        self.collect(what, message, each)
    }

    /// Asks for one object: its parts go to `each`, then the acknowledgement ends it.
    pub fn get(&mut self, what: &str, mut message: Message, each: &mut dyn FnMut(u16, &[u8])) -> Result<()> {
        message.add_flags(NLM_F_ACK);
        self.collect(what, message, each)
    }

    fn collect(&mut self, what: &str, mut message: Message, each: &mut dyn FnMut(u16, &[u8])) -> Result<()> {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        message.write_to(&mut datagram, sequence);
        self.send(&datagram)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let answer = self.receive(&mut buffer)?;
            for part in parts(answer) {
                if part.sequence != sequence {
                    continue;
                }
                match part.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return part.error(what).map_or(Ok(()), Err),
                    kind => each(kind, part.payload),
                }
            }
        }
    }

    fn send(&self, datagram: &[u8]) -> Result<()> {
        // SAFETY: the pointer and the length describe `datagram`.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), datagram.as_ptr().cast(), datagram.len(), 0) };
        if sent < 0 {
            return Err(Error::new("cannot send to the kernel", io::Error::last_os_error()));
        }
        Ok(())
    }

    fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
        loop {
            // SAFETY: the pointer and the length describe `buffer`.
            let got = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if got >= 0 {
                return Ok(&buffer[..got as usize]);
            }
            let source = io::Error::last_os_error();
            if source.kind() != io::ErrorKind::Interrupted {
                return Err(Error::new("the kernel did not answer", source));
            }
        }
    }
}

struct Part<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Part<'_> {
    /// The refusal in an error message; `None` where the error number is 0, an acknowledgement.
    fn error(&self, what: &str) -> Option<Error> {
        let number = i32::from_ne_bytes(self.payload.get(0..4)?.try_into().ok()?);
        if number == 0 {
            return None;
        }
        let echoed =
            if self.flags & NLM_F_CAPPED != 0 { HEADER } else { u32::from_ne_bytes(self.payload.get(4..8)?.try_into().ok()?) as usize };
        let hint = (self.flags & NLM_F_ACK_TLVS != 0)
            .then(|| self.payload.get(4 + echoed.next_multiple_of(4)..))
            .flatten()
            .and_then(|tlvs| attribute(tlvs, NLMSGERR_ATTR_MSG))
            .map(text);
        Some(Error { what: what.to_string(), source: io::Error::from_raw_os_error(-number), hint })
    }
}

fn parts(mut bytes: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(0..4)?.try_into().ok()?) as usize;
        let part = Part {
            kind: u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?),
            payload: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_written() {
        let mut m = Message::new(7, 0);
        m.string(1, "abc").be32(2, 5).nest(3, |m| {
            m.u32(4, 9).attr(5, &[1]);
        });
        let read: Vec<_> = attributes(&m.bytes[HEADER..]).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(text(read[0].1), "abc");
        assert_eq!(read[1], (2, &[0, 0, 0, 5][..]));
        assert_eq!(attribute(read[2].1, 5), Some(&[1][..]));
        assert_eq!(attributes(&[9, 0, 1, 0]).count(), 0, "a length beyond the end is the end");
    }

    #[test]
    fn an_attribute_of_more_than_64_kib_is_refused_before_the_kernel_sees_it() {
        let Ok(mut socket) = Socket::open(NETLINK_ROUTE) else { return };
        let mut m = Message::new(0, 0);
        m.attr(1, &vec![0; 70_000]);
        assert!(socket.request("x", m).is_err());
    }
}
