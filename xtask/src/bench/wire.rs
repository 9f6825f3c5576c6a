//! Whether the link between the nodes shows what is said over it: a configuration that promises encryption is not
//! measured without it.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt::RcvBufForce,
    },
};

use super::{apps::HTTP, rig::Rig, topology::Topology};
use crate::lab::{accounts::Role, load::Client, network};

/// What a listener on the link can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// Requests and answers.
    Clear,
    /// Neither.
    Encrypted,
}

/// Of a request of `mesh-load`, and of the answer of the web server.
const SECRETS: [&[u8]; 2] = [b" HTTP/1.1\r\n", b"xxxxxxxxxxxxxxxx"];
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets a client ask the web server at `target`, and listens meanwhile on node 1 outside of its pods.
///
/// # Errors
/// The wire is another one than expected, the client fails, or there is nothing to be heard.
pub(super) fn verify(rig: &Rig, topology: &Topology, target: Ipv4Addr, expected: Wire) -> Result<()> {
    let socket = listen(&topology.netns("n1"))?;
    let client = topology.netns("a");
    let args =
        ["http", &format!("{target}:{HTTP}"), "--seconds", "0.2", "--warm", "0", "--rate", "200"].map(str::to_owned);
    let answer = Client::start(&rig.launch(&client, Role::Client), &rig.tool, &args)?.answer(PATIENCE)?;
    if answer.errors > 0 || answer.total == 0 {
        bail!("no request came through while the link was listened to: {:?}", answer.first_error);
    }
    let heard = hear(&socket, target)?;
    if heard.packets == 0 {
        bail!("{} requests were answered and no packet of {target} crossed the link", answer.total);
    }
    let found = if heard.secrets > 0 { Wire::Clear } else { Wire::Encrypted };
    if found != expected {
        let Heard { packets, secrets } = heard;
        bail!("expected {expected:?} on the link, but it is {found:?}: {secrets} of {packets} packets can be read");
    }
    Ok(())
}

struct Heard {
    /// Packets from and to the target.
    packets: usize,
    /// Those with a secret in them.
    secrets: usize,
}

/// A packet socket that hears every interface of the namespace.
fn listen(netns: &str) -> Result<OwnedFd> {
    let namespace = File::open(network::path(netns))?;
    let made = thread::scope(|scope| {
        let thread = scope.spawn(|| -> nix::Result<OwnedFd> {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            setsockopt(&socket, RcvBufForce, &(32 << 20))?;
            Ok(socket)
        });
        thread.join()
    });
    Ok(made.map_err(|_| io::Error::other("the thread in the namespace panicked"))??)
}

/// What is in the socket's buffer.
fn hear(socket: &OwnedFd, target: Ipv4Addr) -> Result<Heard> {
    let mut heard = Heard { packets: 0, secrets: 0 };
    let mut packet = vec![0; 128 << 10];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN) => return Ok(heard),
            Err(error) => return Err(error.into()),
        };
        let packet = packet.get(..length).unwrap_or_default();
        // Addresses of an Ethernet frame with an IPv4 packet.
        let address = |at: usize| packet.get(at..at + 4).is_some_and(|bytes| bytes == target.octets());
        if address(26) || address(30) {
            heard.packets += 1;
            heard.secrets += usize::from(SECRETS.iter().any(|secret| contains(packet, secret)));
        }
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}
