//! How the bytes of a connection go, and why they go unencrypted where they do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Relative to the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The workload opened it.
    Outbound,
    /// The workload got it.
    Inbound,
}

impl Direction {
    /// As a log field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How the bytes of a connection go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "transport", content = "plaintext_reason")]
pub enum Transport {
    /// Both ends are on this node: no byte of it leaves the node.
    Local,
    /// Encrypted, both ends authenticated by their certificates.
    Mutual,
    /// Across the node's edge as the app wrote them.
    Plaintext(PlaintextReason),
}

impl Transport {
    /// How many kinds there are: of [`Self::index`].
    pub const KINDS: usize = 3;

    /// Position of the kind in a table.
    pub const fn index(self) -> usize {
        match self {
            Self::Local => 0,
            Self::Mutual => 1,
            Self::Plaintext(_) => 2,
        }
    }

    /// As a log field and a column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Mutual => "mutual",
            Self::Plaintext(_) => "plaintext",
        }
    }

    /// What it is where no TLS is spoken, whatever was planned.
    pub const fn without_tls(self) -> Self {
        match self {
            Self::Mutual => Self::Plaintext(PlaintextReason::MutualNotUsed),
            other => other,
        }
    }

    /// Why it is plaintext, if it is.
    pub const fn plaintext_reason(self) -> Option<PlaintextReason> {
        match self {
            Self::Plaintext(reason) => Some(reason),
            Self::Local | Self::Mutual => None,
        }
    }
}

macro_rules! plaintext_reasons {
    ($($variant:ident $code:literal $what:literal $remedy:literal;)+) => {
        /// Why bytes may go, or went, across the node's edge unencrypted. Codes are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum PlaintextReason {
            $(#[doc = $what] $variant,)+
        }

        impl PlaintextReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable code.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// What it means, one sentence for people who do not know the mesh.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$variant => $what,)+ }
            }

            /// How to end it, one sentence.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)+ }
            }
        }
    };
}

plaintext_reasons! {
    // The agent carried the bytes.
    DestinationUnknown "destination_unknown" "The destination is no pod or service that the mesh knows of, such as a server outside." "Let the app itself speak TLS to it, or enrol the destination.";
    DestinationNotMeshed "destination_not_meshed" "The destination is a pod that is not enrolled in the mesh." "Enrol the destination's namespace.";
    SourceUnknown "source_unknown" "The caller is no pod that the mesh knows of, such as a client outside." "Let clients outside speak TLS to the app, or set mode strict on the pod.";
    SourceNotMeshed "source_not_meshed" "The caller is a pod that is not enrolled in the mesh." "Enrol the caller's namespace, or set mode strict on the pod.";
    HostNetwork "host_network" "The other end is a pod that uses its node's network and cannot be captured." "Give that pod a network of its own.";
    ModeDisabled "mode_disabled" "Policy sets the mode of the called port to disabled: it is to be called in plaintext." "Set its mode to permissive or strict.";
    MutualNotUsed "mutual_not_used" "Both ends are enrolled, and still the connection was made without mutual TLS." "Look for an exclusion at the caller, or for a mesh on the other node that is down or being rolled out.";
    // The agent did not carry the bytes: the kernel counted the connections.
    Excluded "excluded" "An annotation exempts this port or address block from the mesh." "Remove the exclusion.";
    AgentUnavailable "agent_unavailable" "No agent answered, and the pod's mode lets connections pass then." "Find out why the agent was down; mode strict refuses such connections.";
    Unredirectable "unredirectable" "The socket could not be redirected, for instance because it is bound to a device, and the pod's mode lets it pass." "See docs/DATAPATH.md; mode strict refuses such connections.";
    NoAddress "no_address" "The pod had no address of the destination's family, so that nothing is known to have left it." "None needed, unless the pod was given such an address.";
    NodeItself "node_itself" "The node itself called, as for health checks; such connections are exempt." "None needed: they do not cross the node's edge, unless the node forwards them with its own address.";
}

impl fmt::Display for PlaintextReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl FromStr for PlaintextReason {
    type Err = String;

    fn from_str(code: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.iter().copied().find(|reason| reason.code() == code);
        known.ok_or_else(|| format!("unknown plaintext reason {code:?}"))
    }
}

impl Serialize for PlaintextReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for PlaintextReason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_so_that_jq_can_select_by_it() {
        for (transport, json) in [
            (Transport::Local, r#"{"transport":"local"}"#),
            (Transport::Mutual, r#"{"transport":"mutual"}"#),
            (
                Transport::Plaintext(PlaintextReason::ModeDisabled),
                r#"{"transport":"plaintext","plaintext_reason":"mode_disabled"}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&transport).unwrap(), json);
            assert_eq!(serde_json::from_str::<Transport>(json).unwrap(), transport);
        }
    }

    #[test]
    fn codes_are_told_apart() {
        for reason in PlaintextReason::ALL {
            assert_eq!(reason.code().parse(), Ok(*reason));
        }
        assert!("clear".parse::<PlaintextReason>().is_err());
    }

    #[test]
    fn what_was_to_be_encrypted_and_is_not_says_so() {
        assert_eq!(Transport::Mutual.without_tls(), Transport::Plaintext(PlaintextReason::MutualNotUsed));
        assert_eq!(Transport::Local.without_tls(), Transport::Local);
    }
}
