//! TCP in a pod's network namespace, as the kernel counts it there whoever uses it: known before the pod is in the mesh,
//! and after.

use serde::{Deserialize, Serialize};

use super::ObjectName;

/// Counters of a namespace since it was made (RFC 4022 names), and how its open connections stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSample {
    /// Connections that were begun here.
    pub active_opens: u64,
    /// Connections that were accepted here.
    pub passive_opens: u64,
    /// Of either: those that came to nothing, refused or without an answer.
    pub attempt_fails: u64,
    /// Connections that were reset after they were established.
    pub established_resets: u64,
    /// Segments that were sent again.
    pub retransmitted_segments: u64,
    /// Segments that were sent, those included.
    pub sent_segments: u64,
    /// Connections that the mesh refused in the kernel, which are in none of the above.
    #[serde(default)]
    pub refused: u64,
    /// Smoothed round trip times of open connections that leave the pod, summed up, in microseconds.
    pub round_trips_us: u64,
    /// How many those are.
    pub round_trips: u64,
}

/// The sample of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// The pod.
    pub name: ObjectName,
    /// What the kernel says.
    #[serde(flatten)]
    pub sample: NetworkSample,
}
