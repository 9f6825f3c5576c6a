//! What the programs count: the only list of verdicts.

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident = $name:literal),+ $(,)?) => {
        /// Verdicts of one workload. One value per CPU; the sum is the truth.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $field: u64,)+
        }

        impl Counters {
            /// Names of the fields in order, as metrics and `status` call them.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// Adds `other` field by field, wrapping.
            pub const fn add(&mut self, other: &Self) {
                $(self.$field = self.$field.wrapping_add(other.$field);)+
            }

            /// What has come since `earlier`, field by field, wrapping.
            #[must_use]
            pub const fn since(&self, earlier: &Self) -> Self {
                Self { $($field: self.$field.wrapping_sub(earlier.$field)),+ }
            }

            /// The values in the order of [`Self::NAMES`].
            pub const fn values(&self) -> [u64; Self::NAMES.len()] {
                [$(self.$field),+]
            }
        }
    };
}

counters! {
    /// Outbound: connects of an armed workload to anything but loopback. The sum of the outbound verdicts below.
    out_seen = "out_seen",
    /// Rewritten to the agent.
    out_redirected = "out_redirected",
    /// Left alone, by a cached decision.
    out_direct = "out_direct",
    /// Left alone, by an exclusion annotation.
    out_excluded = "out_excluded",
    /// Left alone although it should have been captured: no agent answered (permissive).
    out_passed_unavailable = "out_passed_unavailable",
    /// Refused because no agent answered (strict).
    out_refused_unavailable = "out_refused_unavailable",
    /// Left alone although it should have been captured: the pod was not armed yet (permissive).
    out_passed_unarmed = "out_passed_unarmed",
    /// Refused because the pod was not armed yet (strict).
    out_refused_unarmed = "out_refused_unarmed",
    /// Left alone although it should have been captured: the socket cannot be redirected (permissive).
    out_passed_unredirectable = "out_passed_unredirectable",
    /// Left alone: the pod has no address of that family, so the kernel has no way there either (permissive).
    out_no_address = "out_no_address",
    /// Refused because the socket cannot be redirected (strict).
    out_refused_unredirectable = "out_refused_unredirectable",
    /// Refused at once: the agent had just found that the destination refuses or cannot be reached.
    out_refused_upstream = "out_refused_upstream",
    /// Of the redirected: held until the agent had found out whether the destination answers.
    out_held = "out_held",
    /// Of the redirected: reached the agent's listener with their original destination.
    out_established = "out_established",
    /// Reached the agent's outbound listener without an original destination.
    out_orphaned = "out_orphaned",
    /// Of the direct: established.
    direct_opened = "direct_opened",
    /// Of the direct: closed again.
    direct_closed = "direct_closed",
    /// Bytes acknowledged by the peers of closed direct connections.
    direct_sent_bytes = "direct_sent_bytes",
    /// Bytes received on closed direct connections.
    direct_received_bytes = "direct_received_bytes",
    /// Inbound: SYNs from outside the pod. The sum of the inbound verdicts below.
    in_seen = "in_seen",
    /// Steered to the agent.
    in_redirected = "in_redirected",
    /// Passed: approved as direct.
    in_direct = "in_direct",
    /// Passed: the agent's own upstream connection.
    in_relayed = "in_relayed",
    /// Passed: from the node itself (kubelet probes).
    in_node = "in_node",
    /// Passed: by an exclusion annotation.
    in_excluded = "in_excluded",
    /// Passed although it should have been captured: no agent answered (permissive).
    in_passed_unavailable = "in_passed_unavailable",
    /// Refused because no agent answered (strict).
    in_refused_unavailable = "in_refused_unavailable",
    /// Of the redirected: established at the agent's listener.
    in_established = "in_established",
    /// Sockets for which the kernel had no memory for a flow.
    no_memory = "no_memory",
}
