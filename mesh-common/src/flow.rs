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
