//! Plain data, no IO: what the rest of the agent talks about.

pub mod address;
mod audit;
mod certificate;
mod certificates;
mod explanation;
mod former;
mod handover;
mod identity;
mod mesh;
mod network;
mod policy;
mod problem;
mod reachable;
mod reason;
mod service;
mod shared_map;
mod status;
mod transport;
mod verdicted;
mod workload;

pub use address::{DownstreamAddr, OrigDst, UpstreamAddr, from_words, words};
pub use audit::{Audit, Coverage, Interval, Peer, PlaintextFlow, Refused, Shares, Unobserved, Volume};
pub use certificate::{CertificateRefusal, CertificateState, CertificateStatus, ChainLink};
pub use certificates::{AuthorityStatus, CertificateSummary, Certificates};
pub use explanation::{Explanation, Party, Path, Way};
pub use former::{Former, Left};
pub use handover::{DrainingAgent, HandoverAccount, HandoverAnswer, HandoverRefusal, HandoverRequest, HandoverStep};
pub use identity::{DEFAULT_TRUST_DOMAIN, Identity, NotAnIdentity, is_trust_domain};
pub use mesh::{Mesh, Node, SourceState, Target};
pub use network::{NetworkSample, PodNetwork};
pub use policy::{
    Action, Authorization, Condition, InboundPolicy, Operation, Pattern, Rule, ServiceAccount, Source, Values,
};
pub use problem::{Location, Problem, Severity};
pub use reachable::Reachable;
pub use reason::{Reason, Side};
pub use service::{Endpoint, Service, ServicePort, TrafficDistribution};
pub use shared_map::SharedMap;
pub use status::{
    AuthorizationStatus, HookStatus, KernelStatus, NamespaceStatus, NodeStatus, PodStatus, RelayStatus, Status,
    WorkerStatus,
};
pub use transport::{Direction, PlaintextReason, Transport};
pub use verdicted::{Outcome, Verdicted};
pub use workload::{Exclusions, Mode, ObjectName, PodState, PodUid, Workload};
