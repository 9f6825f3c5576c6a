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
    PolicyDenied "policy_denied" Downstream "An AuthorizationPolicy denies the connection." "The record names the object: change it if the caller is to be let in.";
    PolicyNoMatch "policy_no_match" Downstream "AuthorizationPolicies say who is allowed to call the workload, and none of them names the caller." "The record names both identities: allow the caller by an AuthorizationPolicy, or enrol it if it has no identity.";
    PolicyChanged "policy_changed" Downstream "The connection was open when a change of policy forbade it." "As for policy_denied, policy_no_match or plaintext_refused, whichever new connections end with.";
    HandshakeTimeout "handshake_timeout" Downstream "A mutual TLS handshake did not end in time." "Look at the network between the nodes and at the load of the other agent.";
    HandshakeLimit "handshake_limit" Downstream "A mutual TLS handshake made room for newer ones: too many were open at once." "Look for a client that opens connections to port 15008 and says nothing.";
    HboneBadRequest "hbone_bad_request" Downstream "A request for a tunnel is malformed, or for an address that is not the workload's." "Only CONNECT to an address and port of the workload itself is served; look at the client's agent.";
    HboneRefused "hbone_refused" Upstream "The agent at the destination refused the tunnel." "See the log of the agent on the destination's node.";
    PeerAbsent "peer_absent" Upstream "Nobody answers on port 15008 of the destination pod, which discovery says is in the mesh." "Look at the agent of the destination's node: whether it runs, has armed the pod, and has a certificate for it (mesh-agent status there, or status --cluster).";
    FdLimit "fd_limit" Agent "The agent ran out of file descriptors." "Raise the agent's RLIMIT_NOFILE (LimitNOFILE=, ulimit -n).";
    NoPorts "no_ports" Agent "The pod ran out of ephemeral ports toward that destination." "Widen net.ipv4.ip_local_port_range in the pod, or reuse connections.";
    WorkloadGone "workload_gone" Agent "The pod's network namespace went away under the connection." "None needed: the pod was deleted.";
    Drained "drained" Agent "The agent stopped and the connection outlived the drain deadline." "Raise --drain-deadline, or make clients reconnect.";
    Internal "internal" Agent "The agent met an unexpected error." "Please report it with the agent's log.";
    // Certificates, as the authority or its client says.
    CaUnauthenticated "ca_unauthenticated" Downstream "The certificate authority does not know who asks." "Check the caller's token (--ca-token against the authority's --tokens), or its client certificate.";
    CaNotOnNode "ca_not_on_node" Downstream "The caller's node runs no pod of the identity that was asked for." "Check spec.nodeName and spec.serviceAccountName of the pod, the node name of the caller's token, and that the authority reads the same manifests.";
    CaBadRequest "ca_bad_request" Downstream "The certificate signing request cannot be used." "See the message: it must be PKCS#10 in PEM, signed by its own key, which must be P-256 or P-384.";
    CaWrongIdentity "ca_wrong_identity" Downstream "The identity that was asked for is not one that this authority vouches for, or not the one in the request." "Check that caller and authority have the same --trust-domain.";
    CaLimited "ca_limited" Downstream "The caller asked for more than its share." "It asks again by itself; if it stays, raise the authority's --node-rate, or see who asks so often.";
    CaExpired "ca_expired" Configuration "The authority's own certificate is not valid now." "Check the clock; renew the root or intermediate that the authority was given.";
    CaNotReady "ca_not_ready" Upstream "The certificate authority cannot ask the API server now, or does not know yet which pods there are." "It is asked again by itself; if it stays, see the authority's log, its permissions (docs/IDENTITY.md), and whether the API server answers it.";
    CaUnreachable "ca_unreachable" Upstream "The certificate authority does not answer." "Check --ca-address and the network to it; certificates in force stay so until they expire.";
    CaUntrusted "ca_untrusted" Configuration "The certificate authority, or what it issued, is not vouched for by the trust bundle." "Give the authority's roots in --ca-bundle.";
    CaRefused "ca_refused" Upstream "The certificate authority refused." "See its message and its log.";
    CaNotServed "ca_not_served" Configuration "The SPIFFE Workload API does not give this identity to this agent." "Register the identity for the agent in SPIRE: see docs/IDENTITY.md.";
    // Objects.
    BadYaml "bad_yaml" Configuration "A file is not YAML." "Mend the file; until then the last good objects of it stay in force.";
    BadField "bad_field" Configuration "A field has the wrong type or an impossible value." "Mend the field; until then the last good version of the object stays in force.";
    UnknownAnnotation "unknown_annotation" Configuration "A mesh-agent.io annotation has an unknown name or value." "Use one of the values named in the message.";
    DuplicateObject "duplicate_object" Configuration "Two documents define the same object." "Remove one of them.";
    DuplicateAddress "duplicate_address" Configuration "Two pods or services have the same address." "Give each its own address; until then the first one keeps it.";
    SettingsUnread "settings_unread" Configuration "Annotations that say whether and how a pod is in the mesh cannot be read, and no good version of them is known." "Mend the annotation that the message names: what the kernel still knows of the pod stays in force until then.";
    UnknownKind "unknown_kind" Configuration "A document is of a kind that the agent does not read." "None needed, unless it was meant to have an effect.";
    NetnsMissing "netns_missing" Configuration "The pod's network namespace does not exist." "Create it, or correct the annotation mesh-agent.io/netns.";
    NetnsUnknown "netns_unknown" Agent "An enrolled pod of this node runs, and its network namespace was not found in the cgroup tree." "Let the agent run in the node's pid namespace with CAP_SYS_PTRACE, and name the root of the node's cgroup v2 tree with --cgroup.";
    NetnsUnnamed "netns_unnamed" Configuration "An enrolled pod of this node does not say which network namespace is its own." "Add the annotation mesh-agent.io/netns: NAME-OR-PATH.";
    HostNetwork "host_network" Configuration "An enrolled pod uses the node's network and cannot be captured." "Set mesh-agent.io/mesh: disabled on it, or give it its own network.";
    SourceUnreadable "source_unreadable" Configuration "The folder of manifests cannot be read." "Check that it exists and is readable; until then the last good state stays in force.";
    SourceDisconnected "source_disconnected" Agent "The API server cannot be followed." "See the message; the last state stays in force, and watches are tried again by themselves.";
    SourceForbidden "source_forbidden" Configuration "The API server does not let the agent read a kind." "Give the agent's service account the permissions in docs/KUBERNETES.md.";
    SourceIncomplete "source_incomplete" Agent "Not everything has been read yet, from the API server or from manifests: what an earlier agent armed stays until then." "See the other messages: they say what cannot be read.";
    NodeUnknown "node_unknown" Configuration "There is no Node of this node's name: no pod can be told to be its own." "Give the name of its Node by --node-name, or MESH_AGENT_NODE_NAME from spec.nodeName.";
    // Identities and mutual TLS.
    CertificateExpired "certificate_expired" Agent "The workload's own certificate has expired and no new one was given." "mesh-agent policy certificates tells what the certificate authority answered; check the clocks, too.";
    CertificateMissing "certificate_missing" Agent "The workload has no certificate." "It is fetched when the workload appears; if it stays away, mesh-agent policy certificates tells what the certificate authority answered.";
    CertificateUnusable "certificate_unusable" Configuration "The certificate authority gave a certificate that cannot be used." "See the message; check the authority's configuration, its trust domain and the clocks.";
    PeerCertificateExpired "peer_certificate_expired" Upstream "The other end's certificate is not valid now." "Check the clocks of both nodes, and why the other agent did not rotate.";
    PeerNotTrusted "peer_not_trusted" Upstream "The other end's certificate does not lead to a root that is trusted here." "Check that both agents use the same certificate authority, and whether its root was removed from the trust bundle.";
    PeerRefusedCertificate "peer_refused_certificate" Upstream "The other end refused the workload's certificate." "See the other end's log; check that both agents use the same certificate authority and that the clocks agree.";
    PeerUnexpected "peer_unexpected" Upstream "The other end is somebody else than discovery expects at that address." "If the address has just changed hands, none needed; else find out who answers there.";
    PeerUnidentified "peer_unidentified" Upstream "The other end proved no identity of the trust domain: no certificate, or one without a service account's SPIFFE ID." "Check that the other end is in the mesh and that both ends use the same trust domain.";
    TlsHandshake "tls_handshake" Upstream "The TLS handshake failed: what the other end sent does not follow the protocol, or was damaged." "Something between the nodes may interfere, or the other end does not speak TLS on that port.";
    TlsIncompatible "tls_incompatible" Upstream "The other end does not speak TLS 1.3 as demanded here." "Nothing older is spoken: bring the other end up to date.";
    TrustUnknown "trust_unknown" Agent "No valid root is known: nobody can be verified." "Check that the certificate authority can be reached and that its trust bundle has a root that is valid now.";
    PolicyUnsupported "policy_unsupported" Configuration "A policy uses what this version does not enforce; it is taken by its safe side." "See docs/POLICY.md: an ALLOW rule that uses it matches nobody, a DENY rule applies without it.";
    PolicyConflict "policy_conflict" Configuration "Two objects set different modes for the same workloads; the stricter one is in force." "Leave one of them, or make them say the same.";
    // The agent and its host.
    ArmFailed "arm_failed" Agent "A pod could not be armed: its connections are not captured." "See the message; mesh-agent check tells what the host lacks.";
    HookMissing "hook_missing" Agent "A program that must be attached is not." "Restart the agent; if it stays, look for another tool that detaches cgroup programs.";
    CaptureUnavailable "capture_unavailable" Agent "Connections that should have been captured passed or were refused because no worker answered." "Find out why the agent was down or stuck: see its log around the time.";
    CaptureUnarmed "capture_unarmed" Agent "Connections left a pod before it was armed: they passed or were refused." "Unless the pod ran before it was enrolled, find out why the agent was late: it must run before the pods do, with CPU to spare; mode strict refuses them.";
    CaptureUnaccounted "capture_unaccounted" Agent "The kernel handed over more connections than the agent dealt with." "Connections were lost when an agent died, or there is a bug: see the log, and report it.";
    CaptureBypassed "capture_bypassed" Agent "Connections could not be redirected and passed unseen." "A socket was bound to a device: see docs/DATAPATH.md; mode strict refuses them.";
    CertificateOverdue "certificate_overdue" Agent "A certificate should have been renewed and was not; it is valid still." "mesh-agent policy certificates tells what the certificate authority answered; mend that before it expires.";
    WorkerStuck "worker_stuck" Agent "A worker does not beat." "The other workers take its new connections; restart the agent and report it with its log.";
    ConnectionsKept "connections_kept" Agent "Direct connections that a change of policy forbids cannot be ended." "The kernel lacks CONFIG_INET_DIAG_DESTROY: start the agent with --direct=off, or restart the pods after such a change.";
    StatusNotWritten "status_not_written" Upstream "A pod's annotation mesh-agent.io/status, or an Event about it, could not be written." "It is tried again; see the message: the agent may patch pods and create events where its ClusterRole says so.";
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
