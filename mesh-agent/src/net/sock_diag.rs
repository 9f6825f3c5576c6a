//! The kernel's table of TCP sockets, over NETLINK_SOCK_DIAG (sock_diag(7), include/uapi/linux/inet_diag.h): which are open,
//! what a program keeps in their storage, and the end of one.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    sys::time::TimeVal,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
/// In the answer: `struct tcp_info` (include/uapi/linux/tcp.h). Its bit in what is asked for is one less.
const INET_DIAG_INFO: u16 = 2;
/// Where `tcpi_rtt` is in it, in bytes.
const TCPI_RTT: usize = 68;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
/// In the answer: [`SK_DIAG_BPF_STORAGE`]s, each with [`SK_DIAG_BPF_STORAGE_MAP_VALUE`].
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// Low bits of an attribute's type; the others are flags.
const TYPE_MASK: u16 = 0x3fff;

/// Bytes of `struct nlmsghdr`, `struct inet_diag_sockid` and `struct inet_diag_msg`.
const HEADER: usize = 16;
const ID: usize = 48;
const MESSAGE: usize = 72;
/// ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING (include/net/tcp_states.h).
const OPEN_STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// Answers come at once; this is for a kernel that never does.
const PATIENCE_S: i64 = 5;

/// An open connection, as one of its sockets sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The socket's own end. Never v4-mapped.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    family: u8,
    /// Names the very socket, cookie included.
    id: [u8; ID],
}

/// The table of one network namespace: that in which it was opened.
#[derive(Debug)]
pub struct SockDiag(OwnedFd);

impl SockDiag {
    /// Of the namespace that this thread is in.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0))?;
        Ok(Self(socket))
    }

    /// Open TCP connections with a value in `storage` (a BPF_MAP_TYPE_SK_STORAGE, Linux 5.7) that is `wanted`.
    pub fn connections(&self, storage: BorrowedFd<'_>, wanted: &dyn Fn(&[u8]) -> bool) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let fd = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &(storage.as_raw_fd() as u32).to_ne_bytes());
            let asked = attribute(INET_DIAG_REQ_SK_BPF_STORAGES, &fd);
            self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family as u8, 0, &[0; ID], &asked)?;
            self.receive(|message| found.extend(connection(message, wanted)))?;
        }
        Ok(found)
    }

    /// Smoothed round trip times of open connections that leave the machine or namespace, in microseconds.
    pub fn round_trips(&self) -> io::Result<Vec<u32>> {
        let mut times = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let extensions = 1 << (INET_DIAG_INFO - 1);
            self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family as u8, extensions, &[0; ID], &[])?;
            self.receive(|message| times.extend(round_trip(message)))?;
        }
        Ok(times)
    }

    /// Ends a connection: both apps see it as aborted. One that is gone already is no error.
    ///
    /// # Errors
    /// `Unsupported`: the kernel was built without CONFIG_INET_DIAG_DESTROY. What else it says.
    pub fn destroy(&self, connection: &Connection) -> io::Result<()> {
        match self.destroy_socket(connection.family, &connection.id) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Whether [`Self::destroy`] works on this kernel.
    pub fn can_destroy(&self) -> io::Result<bool> {
        // No socket is connected to port 0 of nowhere.
        let mut id = [0; ID];
        if let Some(cookie) = id.last_chunk_mut() {
            *cookie = ANY_COOKIE;
        }
        match self.destroy_socket(libc::AF_INET as u8, &id) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(true),
            result => result.map(|()| true),
        }
    }

    fn destroy_socket(&self, family: u8, id: &[u8; ID]) -> io::Result<()> {
        self.send(SOCK_DESTROY, NLM_F_ACK, family, 0, id, &[])?;
        self.receive(|_| {})
    }

    /// Sends `struct inet_diag_req_v2` and what follows it.
    fn send(
        &self,
        kind: u16,
        flags: u16,
        family: u8,
        extensions: u8,
        id: &[u8; ID],
        attributes: &[u8],
    ) -> io::Result<()> {
        let mut message = Vec::with_capacity(128);
        let length = HEADER + 8 + ID + attributes.len();
        message.extend_from_slice(&(length as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(&[family, libc::IPPROTO_TCP as u8, extensions, 0]);
        message.extend_from_slice(&OPEN_STATES.to_ne_bytes());
        message.extend_from_slice(id);
        message.extend_from_slice(attributes);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Receives until the kernel is done; each message without its header goes to `take`.
    fn receive(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, body, after)) = next_message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = body.first_chunk().map_or(-libc::EIO, |code| i32::from_ne_bytes(*code));
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => take(body),
                }
                rest = after;
            }
        }
    }
}

/// Kind and body of the first message, and what follows it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len());
    bytes.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Values of the attributes of a kind, one after the other.
fn attributes(mut bytes: &[u8], wanted: u16) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
            let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & TYPE_MASK;
            let value = bytes.get(4..length)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            if kind == wanted {
                return Some(value);
            }
        }
    })
}

/// The smoothed round trip time of a connection; `None` without one, or where both ends are here.
fn round_trip(message: &[u8]) -> Option<u32> {
    let Connection { local, remote, .. } = ends(message)?;
    let is_here = remote.ip().is_loopback() || local.ip() == remote.ip();
    let info = attributes(message.get(MESSAGE..)?, INET_DIAG_INFO).next()?;
    let time = u32::from_ne_bytes(*info.get(TCPI_RTT..)?.first_chunk()?);
    (!is_here && time > 0).then_some(time)
}

/// Reads `struct inet_diag_msg`; `None` if its storage is not wanted.
fn connection(message: &[u8], wanted: &dyn Fn(&[u8]) -> bool) -> Option<Connection> {
    let stored = attributes(message.get(MESSAGE..)?, INET_DIAG_SK_BPF_STORAGES)
        .flat_map(|storages| attributes(storages, SK_DIAG_BPF_STORAGE))
        .flat_map(|storage| attributes(storage, SK_DIAG_BPF_STORAGE_MAP_VALUE));
    if !stored.into_iter().any(wanted) {
        return None;
    }
    ends(message)
}

fn ends(message: &[u8]) -> Option<Connection> {
    let family = *message.first()?;
    let id: [u8; ID] = *message.get(4..)?.first_chunk()?;
    let port = |at: usize| Some(u16::from_be_bytes(*id.get(at..)?.first_chunk()?));
    let address = |at: usize| -> Option<IpAddr> {
        let bytes = id.get(at..)?;
        Some(match i32::from(family) {
            libc::AF_INET => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
            _ => IpAddr::from(Ipv6Addr::from(*bytes.first_chunk::<16>()?)).to_canonical(),
        })
    };
    Some(Connection {
        local: SocketAddr::new(address(4)?, port(0)?),
        remote: SocketAddr::new(address(20)?, port(2)?),
        family,
        id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_in_any_order_and_never_beyond_the_end() {
        let bytes =
            [attribute(1, b"a"), attribute(2, b"bcdef"), attribute(1 | 0x8000, b"gh"), vec![200, 0, 1, 0]].concat();
        assert_eq!(attributes(&bytes, 1).collect::<Vec<_>>(), [&b"a"[..], b"gh"]);
        assert_eq!(attributes(&bytes, 2).collect::<Vec<_>>(), [b"bcdef"]);
        for end in 0..bytes.len() {
            assert!(attributes(&bytes[..end], 1).count() <= 2);
        }
        // A length of nothing does not go round in circles.
        assert_eq!(attributes(&[0, 0, 1, 0, 0, 0, 1, 0], 1).count(), 0);
    }

    #[test]
    fn a_connection_is_read_as_the_kernel_writes_it() {
        let mut message = vec![0; MESSAGE];
        message[0] = libc::AF_INET6 as u8;
        message[4..8].copy_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
        message[8..24].copy_from_slice(&Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets());
        message[24..40].copy_from_slice(&Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped().octets());
        let value = attribute(SK_DIAG_BPF_STORAGE_MAP_VALUE, &[3, 0, 0, 0]);
        message.extend(attribute(INET_DIAG_SK_BPF_STORAGES, &attribute(SK_DIAG_BPF_STORAGE, &value)));
        let is_three = |value: &[u8]| value.first() == Some(&3);
        let found = connection(&message, &is_three).unwrap();
        assert_eq!(found.local, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(found.remote, "10.0.0.2:8080".parse().unwrap());
        assert_eq!(connection(&message, &|value| !is_three(value)), None);
        assert_eq!(connection(&message[..MESSAGE], &|_| true), None, "without storage it is not ours");
        assert_eq!(connection(&message[..20], &|_| true), None);
    }

    #[test]
    fn round_trips_are_of_connections_that_leave() {
        let message = |remote: Ipv4Addr, time: u32| {
            let mut message = vec![0; MESSAGE];
            message[0] = libc::AF_INET as u8;
            message[8..12].copy_from_slice(&[10, 0, 0, 1]);
            message[24..28].copy_from_slice(&remote.octets());
            let mut info = vec![0; TCPI_RTT];
            info.extend_from_slice(&time.to_ne_bytes());
            message.extend(attribute(INET_DIAG_INFO, &info));
            message
        };
        assert_eq!(round_trip(&message(Ipv4Addr::new(10, 0, 0, 2), 250)), Some(250));
        assert_eq!(round_trip(&message(Ipv4Addr::new(10, 0, 0, 1), 250)), None);
        assert_eq!(round_trip(&message(Ipv4Addr::LOCALHOST, 250)), None);
        assert_eq!(round_trip(&message(Ipv4Addr::new(10, 0, 0, 2), 0)), None, "not known yet");
        assert_eq!(round_trip(&[0; MESSAGE]), None);
    }

    #[test]
    fn messages_end_where_the_bytes_do() {
        let mut bytes = 20_u32.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(next_message(&bytes), Some((2, &[1, 2, 3, 4][..], &[][..])));
        assert_eq!(next_message(&bytes[..19]), None);
        assert_eq!(next_message(&[0; 16]), None);
    }
}
