//! What travels with a connection, and what the kernel remembers of earlier ones.

use crate::Address;

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port.
    pub port: u32,
}

/// A connection's 4-tuple, seen from the side that connected.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple {
    /// Who connected.
    pub source: Address,
    /// To what.
    pub destination: Address,
    /// Port of `source`.
    pub source_port: u16,
    /// Port of `destination`.
    pub destination_port: u16,
}

/// Nothing is known of this socket (left after a disconnect).
pub const FLOW_NONE: u32 = 0;
/// An app's socket whose connect was rewritten to the agent; `address` is what it asked for.
pub const FLOW_REDIRECTED: u32 = 1;
/// The agent's accepted end of it; `address` is the original destination.
pub const FLOW_OUTBOUND: u32 = 2;
/// An app's socket that goes direct; `address` is what it asked for.
pub const FLOW_DIRECT: u32 = 3;
/// A socket of the agent toward an app; `address` is the downstream client to be shown to the app, if any.
pub const FLOW_UPSTREAM: u32 = 4;
/// The app's accepted end of it; `address` is the client.
pub const FLOW_ACCEPTED: u32 = 5;
/// A listener of the agent for outbound connections; its accepted sockets inherit this.
pub const FLOW_LISTENER_OUTBOUND: u32 = 6;
/// A listener of the agent for inbound connections; its accepted sockets inherit this.
pub const FLOW_LISTENER_INBOUND: u32 = 7;
/// The agent's accepted end of an inbound connection.
pub const FLOW_INBOUND: u32 = 8;

/// What a socket carries in its storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// `FLOW_*`.
    pub kind: u32,
    /// Slot of the workload, or 0.
    pub slot: u32,
    /// The original destination, or the client: see `kind`.
    pub original: Endpoint,
    /// What the kernel itself takes for the peer. The flow speaks of this peer only: a socket that was
    /// disconnected and connected elsewhere must not answer with the old one.
    pub actual: Endpoint,
    /// A backend that the connect hook drew and that must be reached by way of the agent, or zeros.
    pub chosen: Endpoint,
    /// Slots in `GENERATIONS` of source and destination, for [`FLOW_DIRECT`].
    pub generation_slots: [u32; 2],
    /// Their values at connect.
    pub generations: [u32; 2],
    /// Not 0 where nobody knew yet whether the destination answers: the handshake waits for it ([`Reach`]).
    pub held: u32,
    /// Not 0 for a subflow of an MPTCP socket: the app's own socket is another one, without a flow.
    pub subflow: u32,
}

/// Connections to the destination succeed: the agent's listener may answer at once.
pub const REACH_OPEN: u32 = 1;
/// They fail at once: refused, or no way to it.
pub const REACH_REFUSED: u32 = 2;

/// Whether a destination ([`DecisionKey`]) answers, as the agent has last found out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// CLOCK_MONOTONIC, in nanoseconds, after which nobody knows any more.
    pub until_ns: u64,
    /// `REACH_*`.
    pub state: u32,
    /// What connect() fails with, unless it is open.
    pub errno: u32,
}

/// A connection whose handshake is held, for the agent to find out whether its destination answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// Its 4-tuple; the destination is the agent's.
    pub tuple: Tuple,
    /// The workload's slot.
    pub slot: u32,
    /// The CPU it was made on.
    pub cpu: u32,
    /// What the app asked for.
    pub original: Endpoint,
    /// The backend that the connect hook drew, or zeros.
    pub chosen: Endpoint,
}

/// A workload's question: where does this address lead?
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecisionKey {
    /// The source's slot.
    pub slot: u32,
    /// Destination port.
    pub port: u32,
    /// Destination address.
    pub address: Address,
}

/// The destination is a pod of this node: leave the address as it is.
pub const WAY_DIRECT: u32 = 1;
/// The destination is a service: draw one of `count` backends of `service`.
pub const WAY_SERVICE: u32 = 2;
/// A backend that is reached by way of the agent.
pub const WAY_RELAY: u32 = 3;

/// The answer, void unless both generations are current.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// [`WAY_DIRECT`] or [`WAY_SERVICE`].
    pub way: u32,
    /// [`crate::Workload::generation`] of the source it was made for.
    pub source_generation: u32,
    /// Generation of the destination address it was made for.
    pub generation: u32,
    /// Number of backends, for [`WAY_SERVICE`].
    pub count: u32,
    /// Id of the backend list, for [`WAY_SERVICE`]. A changed list has a new id.
    pub service: u32,
}

/// One backend of a list.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendKey {
    /// [`Decision::service`].
    pub service: u32,
    /// 0 to [`Decision::count`] - 1.
    pub index: u32,
}

/// Where it is and how it is reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// [`WAY_DIRECT`] or [`WAY_RELAY`].
    pub way: u32,
}

/// A connection that `sk_lookup` lets through to the app.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Approval {
    /// CLOCK_MONOTONIC, in nanoseconds, after which it is void.
    pub deadline_ns: u64,
    /// [`FLOW_DIRECT`] or [`FLOW_UPSTREAM`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// Slots in `GENERATIONS` of source and destination.
    pub generation_slots: [u32; 2],
    /// Their values at connect; checked for [`FLOW_DIRECT`].
    pub generations: [u32; 2],
}

impl Attempt {
    /// Reads what the ring holds.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let words: &[u8; size_of::<Self>()] = bytes.first_chunk()?;
        let mut words =
            words.chunks_exact(4).filter_map(|word| word.first_chunk()).map(|word| u32::from_ne_bytes(*word));
        let mut address = || Some([words.next()?, words.next()?, words.next()?, words.next()?]);
        let (source, destination) = (address()?, address()?);
        let ports = words.next()?.to_ne_bytes();
        let (slot, cpu) = (words.next()?, words.next()?);
        let mut endpoint = || {
            let address = [words.next()?, words.next()?, words.next()?, words.next()?];
            Some(Endpoint { address, port: words.next()? })
        };
        let (original, chosen) = (endpoint()?, endpoint()?);
        let [a, b, c, d] = ports;
        let tuple = Tuple {
            source,
            destination,
            source_port: u16::from_ne_bytes([a, b]),
            destination_port: u16::from_ne_bytes([c, d]),
        };
        Some(Self { tuple, slot, cpu, original, chosen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_read_field_by_field() {
        let endpoint = |n: u32| Endpoint { address: [n, n + 1, n + 2, n + 3], port: n + 4 };
        let attempt = Attempt {
            tuple: Tuple { source: [1, 2, 3, 4], destination: [5, 6, 7, 8], source_port: 0x1234, destination_port: 9 },
            slot: 10,
            cpu: 11,
            original: endpoint(20),
            chosen: endpoint(30),
        };
        let mut bytes = [0_u8; size_of::<Attempt>() + 4];
        let words = [
            1,
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            u32::from_ne_bytes([0x34, 0x12, 9, 0]),
            10,
            11,
            20,
            21,
            22,
            23,
            24,
            30,
            31,
            32,
            33,
            34_u32,
        ];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        assert_eq!(Attempt::from_bytes(&bytes), Some(attempt));
        assert_eq!(Attempt::from_bytes(&bytes[..size_of::<Attempt>() - 1]), None);
    }
}
