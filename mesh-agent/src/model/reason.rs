//! The one list of reason codes: metric label, log field, status column and what `mesh-agent explain CODE` prints.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Downstream,
    /// The server's, or the network's to it.
    Upstream,
    /// The agent's or its host's.
    Agent,
    /// A manifest's or another object's.
    Configuration,
}

macro_rules! reasons {
    ($($variant:ident $code:literal $side:ident $what:literal $remedy:literal;)+) => {
        /// Why something was refused, failed or is unhealthy. Codes are stable; a retired one is not used again.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $what] $variant,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable code.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// Whose fault it is.
            pub const fn side(self) -> Side {
                match self { $(Self::$variant => Side::$side,)+ }
            }

            /// What it means, one sentence.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$variant => $what,)+ }
            }

            /// What to do about it, one sentence.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)+ }
            }
        }
    };
}

reasons! {
    // Connections.
    Ok "ok" Agent "The connection ended as its ends wanted." "None needed.";
    DownstreamReset "downstream_reset" Downstream "The client reset the connection." "Look at the client: it closed with unread data, crashed, or gave up.";
    UpstreamReset "upstream_reset" Upstream "The server reset the connection." "Look at the server: it closed with unread data, crashed, or refused the protocol.";
    UpstreamRefused "upstream_refused" Upstream "The server refused the connection." "Nothing listens on that address and port, or the server's accept queue is configured to reset: check the server and the port.";
    UpstreamTimeout "upstream_timeout" Upstream "The server did not answer within the connect timeout." "Check that the address is alive and that no firewall or NetworkPolicy drops the packets; --connect-timeout sets the limit.";
    UpstreamUnreachable "upstream_unreachable" Upstream "There is no route to the server." "Check the pod's routes and the address.";
    NoEndpoints "no_endpoints" Upstream "The service has no usable endpoint." "Check that its selector matches ready pods, and its EndpointSlices.";
    UnknownServicePort "unknown_service_port" Downstream "The service has no such port." "Check the port the client uses against the Service's ports.";
    NoOriginalDestination "no_original_destination" Downstream "A connection reached the agent's port without having been captured." "Something in the pod dials the agent's port itself: use the real destination.";
    PlaintextRefused "plaintext_refused" Downstream "A strict workload was called in plaintext by somebody who is not in the mesh." "Enrol the caller, or set mesh-agent.io/mode: permissive on the callee.";
    CertificateMissing "certificate_missing" Agent "There is no valid certificate for the workload, so it can neither call nor be called by mutual TLS." "See the certificates in mesh-agent status: the certificate authority may be unreachable, or refuse.";
    CertificateRefused "certificate_refused" Upstream "The other end of a mutual TLS connection did not accept the workload's certificate." "Compare the trust roots and the clocks of the two nodes.";
    TlsHandshake "tls_handshake" Downstream "A mutual TLS handshake failed before certificates were judged." "The other end does not speak TLS 1.3 with an offered protocol, or is no mesh agent at all: see the log.";
    HandshakeTimeout "handshake_timeout" Downstream "A mutual TLS handshake did not end in time." "Look at the network between the nodes and at the load of the other agent.";
    HandshakeLimit "handshake_limit" Downstream "A mutual TLS handshake made room for newer ones: too many were open at once." "Look for a client that opens connections to port 15008 and says nothing.";
    PeerNotTrusted "peer_not_trusted" Downstream "The other end of a mutual TLS connection has no certificate that is trusted." "Compare the trust roots and the clocks of the two nodes; a client outside the mesh must not use port 15008.";
    PeerUnexpected "peer_unexpected" Upstream "The workload at the destination is another one than the mesh expects there." "The address may have passed to another pod a moment ago; if it stays, compare the service accounts of pod and certificate.";
    HboneBadRequest "hbone_bad_request" Downstream "A request for a tunnel is malformed, or for an address that is not the workload's." "Only CONNECT to an address and port of the workload itself is served; look at the client's agent.";
    HboneRefused "hbone_refused" Upstream "The agent at the destination refused the tunnel." "See the log of the agent on the destination's node.";
    FdLimit "fd_limit" Agent "The agent ran out of file descriptors." "Raise the agent's RLIMIT_NOFILE (LimitNOFILE=, ulimit -n).";
    NoPorts "no_ports" Agent "The pod ran out of ephemeral ports toward that destination." "Widen net.ipv4.ip_local_port_range in the pod, or reuse connections.";
    WorkloadGone "workload_gone" Agent "The pod's network namespace went away under the connection." "None needed: the pod was deleted.";
    Drained "drained" Agent "The agent stopped and the connection outlived the drain deadline." "Raise --drain-deadline, or make clients reconnect.";
    Internal "internal" Agent "The agent met an unexpected error." "Please report it with the agent's log.";
    // Objects.
    BadYaml "bad_yaml" Configuration "A file is not YAML." "Mend the file; until then the last good objects of it stay in force.";
    BadField "bad_field" Configuration "A field has the wrong type or an impossible value." "Mend the field; until then the last good version of the object stays in force.";
    UnknownAnnotation "unknown_annotation" Configuration "A mesh-agent.io annotation has an unknown name or value." "Use one of the values named in the message.";
    DuplicateObject "duplicate_object" Configuration "Two documents define the same object." "Remove one of them.";
    DuplicateAddress "duplicate_address" Configuration "Two pods or services have the same address." "Give each its own address; until then the first one keeps it.";
    UnknownKind "unknown_kind" Configuration "A document is of a kind that the agent does not read." "None needed, unless it was meant to have an effect.";
    NetnsMissing "netns_missing" Configuration "The pod's network namespace does not exist." "Create it, or correct the annotation mesh-agent.io/netns.";
    NetnsUnnamed "netns_unnamed" Configuration "An enrolled pod of this node does not say which network namespace is its own." "Add the annotation mesh-agent.io/netns: NAME-OR-PATH.";
    HostNetwork "host_network" Configuration "An enrolled pod uses the node's network and cannot be captured." "Set mesh-agent.io/mesh: disabled on it, or give it its own network.";
    SourceUnreadable "source_unreadable" Configuration "The folder of manifests cannot be read." "Check that it exists and is readable; until then the last good state stays in force.";
    // The agent and its host.
    ArmFailed "arm_failed" Agent "A pod could not be armed: its connections are not captured." "See the message; mesh-agent check tells what the host lacks.";
    HookMissing "hook_missing" Agent "A program that must be attached is not." "Restart the agent; if it stays, look for another tool that detaches cgroup programs.";
    CaptureUnavailable "capture_unavailable" Agent "Connections that should have been captured passed or were refused because no worker answered." "Find out why the agent was down or stuck: see its log around the time.";
    CaptureUnaccounted "capture_unaccounted" Agent "The kernel handed over more connections than the agent dealt with." "Connections were lost when an agent died, or there is a bug: see the log, and report it.";
    CaptureBypassed "capture_bypassed" Agent "Connections could not be redirected and passed unseen." "A socket was bound to a device: see docs/DATAPATH.md; mode strict refuses them.";
    WorkerStuck "worker_stuck" Agent "A worker does not beat." "The other workers take its new connections; restart the agent and report it with its log.";
    TooManyWorkloads "too_many_workloads" Agent "The node has more enrolled pods than the agent has slots." "Disable the mesh for some pods.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl FromStr for Reason {
    type Err = String;

    fn from_str(code: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code).ok_or_else(|| format!("unknown reason {code:?}"))
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
