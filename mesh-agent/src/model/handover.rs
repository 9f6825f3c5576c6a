//! What two agents of a node say to each other when one takes over from the other.

use serde::{Deserialize, Serialize};

/// How far a hand-over is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverStep {
    /// The newcomer is there and makes itself ready.
    Announce,
    /// It is ready: the running agent is to write nothing any more.
    Take,
    /// It serves the pods: the former agent is relieved.
    Done,
    /// By the former agent to its successor: nothing comes to it any more, and so much came since.
    Settled,
}

/// A step, as it is posted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverRequest {
    /// Which.
    pub step: HandoverStep,
    /// The version of who asks.
    pub version: String,
    /// The ABI of its programs.
    pub abi: u32,
    /// Where its pins are.
    pub pins: String,
    /// With [`HandoverStep::Settled`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<HandoverAccount>,
}

/// What became of the connections that the kernel handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverAccount {
    /// Cookie of the pod's network namespace.
    pub cookie: u64,
    /// Up to where the kernel's count is explained by this agent and those before it.
    pub explained: u64,
}

/// What is answered to a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverAnswer {
    /// The version of who answers.
    pub version: String,
    /// Its process id.
    pub pid: u32,
}

/// Why a step was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoverRefusal {
    /// It may be asked for again, at once.
    Later(String),
    /// It may not.
    Never(String),
}

/// An agent that was relieved and has connections left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainingAgent {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Its open connections; `None` if it did not say.
    pub open: Option<u64>,
}
