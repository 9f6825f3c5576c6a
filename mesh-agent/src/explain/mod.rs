//! Would this connection be allowed, and how would it go? Asked of a snapshot, with the functions that the data path asks
//! on the nodes of both ends. Pure.

mod near;
mod party;

#[cfg(test)]
mod tests;

pub use near::near;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use crate::{
    model::{
        Explanation, Mesh, Node, ObjectName, OrigDst, Path, PlaintextReason, Reason, Transport, UpstreamAddr, Way,
        Workload,
    },
    policy::{self, Client, Flow},
    proxy::{
        direct,
        transport::{self, choose},
    },
    route::{
        self, Route,
        transport::{self as edge, Here},
    },
};
use party::{Destination, Source};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// `NAMESPACE/POD`, `NAMESPACE/sa/NAME` or an address.
    pub source: String,
    /// `NAMESPACE/POD`, `NAMESPACE/SERVICE` or an address.
    pub destination: String,
    /// The port that is called.
    pub port: u16,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing has that name.
    #[error("there is no {what} {text:?}{}", if .near.is_empty() { String::new() } else { format!("; did you mean {}?", .near.join(" or ")) })]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// The name.
        text: String,
        /// Names like it.
        near: Vec<String>,
    },
    /// A pod and a service have it.
    #[error("{namespace}/{name} is a pod and a service: write {namespace}/pod/{name} or {namespace}/svc/{name}")]
    Ambiguous {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// It is no name at all.
    #[error("{0:?} is neither of {1}")]
    Form(String, &'static str),
    /// It has no address that could be called.
    #[error("{0} has no known address: set status.podIPs in its manifest, or ask for its address")]
    NoAddress(String),
}

/// Where the question is asked.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The snapshot and this node's own addresses.
    pub here: Here<'a>,
    /// `--direct`; what other nodes have is taken to be the same.
    pub direct: bool,
}

/// Answers.
pub fn explain(site: Site<'_>, query: &Query) -> Result<Explanation, Error> {
    let mesh = site.here.mesh;
    let source = Source::find(mesh, &query.source)?;
    let destination = Destination::find(mesh, &query.destination)?;
    let address = destination.address(source.address(None));
    let address = address.ok_or_else(|| Error::NoAddress(query.destination.clone()))?;
    let dialed = SocketAddr::new(address, query.port);
    let call = Call { site, source: &source, from: source.address(Some(address)), dialed };
    let mut explanation = Explanation {
        source: source.describe(),
        destination: destination.describe(mesh, address),
        port: query.port,
        allowed: true,
        reason: Reason::Ok,
        paths: Vec::new(),
        notes: call.notes(),
    };
    match call.endpoints() {
        Ok(endpoints) => {
            explanation.paths = endpoints.into_iter().map(|(at, pod)| call.path(at, pod.as_deref())).collect();
            if let Some(refused) = explanation.paths.iter().find(|path| !path.allowed) {
                (explanation.allowed, explanation.reason) = (false, refused.reason);
            }
        }
        Err(reason) => (explanation.allowed, explanation.reason) = (false, reason),
    }
    Ok(explanation)
}

/// An endpoint and the pod there, if one is known.
type At = (SocketAddr, Option<Arc<Workload>>);

/// One call.
struct Call<'a> {
    site: Site<'a>,
    source: &'a Source,
    from: Option<IpAddr>,
    dialed: SocketAddr,
}

/// Whether an agent governs what the source opens.
enum Capture {
    Yes,
    No(PlaintextReason, &'static str),
}

impl Call<'_> {
    fn capture(&self) -> Capture {
        let Some(pod) = self.source.pod() else {
            let is_node = self.from.is_some_and(|from| self.is_own(from));
            return if is_node {
                Capture::No(PlaintextReason::NodeItself, "the node's own connections, as for health checks, are exempt")
            } else {
                Capture::No(PlaintextReason::SourceUnknown, "the source is no pod of the mesh")
            };
        };
        let exclusions = &pod.exclusions;
        let is_excluded = exclusions.outbound_ports.contains(&self.dialed.port())
            || exclusions.outbound_cidrs.iter().any(|block| block.contains(&self.dialed.ip()));
        match (pod.enrolled, pod.host_network, is_excluded) {
            (false, ..) => Capture::No(PlaintextReason::SourceNotMeshed, "the source is not enrolled"),
            (_, true, _) => Capture::No(PlaintextReason::HostNetwork, "the source uses its node's network"),
            (.., true) => {
                Capture::No(PlaintextReason::Excluded, "an annotation of the source excludes the destination")
            }
            _ => Capture::Yes,
        }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        let here = self.site.here;
        here.mesh.workload_at(address).is_none() && here.has(address)
    }

    /// Every endpoint that may be chosen, and the pod there.
    fn endpoints(&self) -> Result<Vec<At>, Reason> {
        Ok(match route::select(self.site.here.mesh, OrigDst(self.dialed))? {
            Route::Passthrough(upstream) => vec![(upstream.0, None)],
            Route::Workload { workload, upstream } => vec![(upstream.0, Some(workload))],
            Route::Service { port, .. } => {
                let at = |e: &crate::model::Endpoint| (SocketAddr::new(e.address, e.port), e.workload.clone());
                port.endpoints.iter().map(at).collect()
            }
        })
    }

    fn path(&self, at: SocketAddr, target: Option<&Workload>) -> Path {
        let verdict = match self.capture() {
            Capture::Yes => self.governed(at, target),
            Capture::No(reason, why) => self.ungoverned(at, target, reason, why),
        };
        let is_meshed = target.is_some_and(|pod| pod.enrolled && !pod.host_network);
        Path {
            endpoint: target.map_or_else(|| party::of_address(Some(at.ip())), |pod| party::of_pod(pod, Some(at.ip()))),
            port: at.port(),
            mode: target.filter(|_| is_meshed).map(|pod| pod.policy.mode_of(at.port())),
            allowed: verdict.decision.refused.is_none(),
            reason: verdict.decision.refused.unwrap_or(Reason::Ok),
            decided_by: verdict.decision.by,
            dry_run: verdict.decision.dry_run,
            way: verdict.way,
            way_why: verdict.why.to_owned(),
            transport: verdict.transport,
        }
    }

    /// As the agent on the source's node would have it.
    fn governed(&self, at: SocketAddr, target: Option<&Workload>) -> Verdict {
        let seen = View::of(self.site.here, self.source.pod().and_then(|pod| pod.node.clone()));
        let source = self.source.pod().map(AsRef::as_ref);
        let transport = match choose(&seen.mesh, source, target, UpstreamAddr(at)) {
            transport::Transport::Mutual(_) => Transport::Mutual,
            transport::Transport::Plain(_) => edge::outbound(seen.here(), at).without_tls(),
        };
        let client = self.client(transport);
        let decision = self.authorize(client.clone(), target, at);
        let mut backends = Vec::new();
        let is_direct =
            direct::cacheable(&seen.mesh, &client, OrigDst(self.dialed), &mut backends).is_some_and(|way| {
                way.list == 0 || way.backends.iter().any(|(backend, is_direct)| *backend == at && *is_direct)
            });
        let (way, why) = match (transport, is_direct, self.site.direct) {
            _ if decision.refused.is_some() => (Way::Relayed, "the agent refuses it"),
            (Transport::Local, true, true) => {
                (Way::Direct, "both ends are enrolled pods of one node; the first connection is relayed")
            }
            (Transport::Local, true, false) => (Way::Relayed, "--direct is off"),
            (Transport::Local, false, _) => {
                (Way::Relayed, "the destination is no enrolled pod, or a policy wants to be asked every time")
            }
            _ => (Way::Relayed, "the destination is on another node, or outside"),
        };
        Verdict { decision, way, why, transport }
    }

    /// As the agent on the target's node would have it, if there is one.
    fn ungoverned(
        &self,
        at: SocketAddr,
        target: Option<&Workload>,
        reason: PlaintextReason,
        why: &'static str,
    ) -> Verdict {
        let seen = View::of(self.site.here, target.and_then(|pod| pod.node.clone()));
        let transport = match self.from {
            Some(from) if seen.here().has(at.ip()) && seen.here().has(from) => Transport::Local,
            _ => Transport::Plaintext(reason),
        };
        let untouched = |why| Verdict { decision: Decided::default(), way: Way::Untouched, why, transport };
        let Some(pod) = target.filter(|pod| pod.enrolled && !pod.host_network) else { return untouched(why) };
        let is_excluded = pod.exclusions.inbound_ports.contains(&at.port())
            || self.from.is_some_and(|from| pod.exclusions.inbound_cidrs.iter().any(|block| block.contains(&from)));
        if is_excluded {
            return untouched("an annotation of the destination exempts the port or the source");
        }
        if reason == PlaintextReason::NodeItself && transport == Transport::Local {
            return untouched(why);
        }
        let decision = self.authorize(self.client(transport.without_tls()), target, at);
        let why = if decision.refused.is_some() {
            "the agent at the destination refuses it"
        } else {
            "the agent at the destination takes it"
        };
        Verdict { decision, way: Way::Relayed, why, transport }
    }

    /// Who calls, as the target's agent sees it.
    fn client(&self, transport: Transport) -> Client {
        let address = self.from.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let is_governed = matches!(self.capture(), Capture::Yes);
        match (self.source.pod().filter(|_| is_governed), transport) {
            (Some(pod), Transport::Local) => Client::Pod {
                name: pod.name.clone(),
                identity: Arc::clone(&pod.identity),
                addresses: pod.addresses.as_slice().into(),
            },
            (Some(pod), Transport::Mutual) => Client::Certified { identity: Arc::clone(&pod.identity), address },
            _ => Client::Stranger { address },
        }
    }

    /// What the agent on the target's node decides.
    fn authorize(&self, client: Client, target: Option<&Workload>, at: SocketAddr) -> Decided {
        let Some(target) = target else { return Decided::default() };
        let seen = View::of(self.site.here, target.node.clone());
        let flow = Flow { client, target: target.name.clone(), destination: at };
        let decision = policy::review(&seen.mesh, &flow);
        let named = |by: Option<&ObjectName>| by.map(|object| format!("AuthorizationPolicy {object}"));
        let (refused, by) = match decision.verdict {
            policy::Verdict::Allowed { by } => (None, named(by)),
            policy::Verdict::Denied { reason, by } => (Some(reason), named(by)),
        };
        let dry_run = decision.dry_run.map(|would| match would {
            policy::Verdict::Allowed { by } => ("allowed", by),
            policy::Verdict::Denied { by, .. } => ("denied", by),
        });
        let dry_run = dry_run.map(|(verdict, by)| {
            let by = named(by).map(|object| format!(" by {object}")).unwrap_or_default();
            format!("{} would be {verdict}{by}, were dry runs in force", target.name)
        });
        Decided { refused, by, dry_run }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Source::Account(_, Some(pod)) = self.source {
            notes.push(format!("pod {} stands for all pods of the service account", pod.name));
        }
        if let Capture::No(reason, _) = self.capture() {
            notes.push(format!("the source's end is not governed: {}", reason.what()));
        }
        notes
    }
}

/// What policy says.
#[derive(Debug, Default)]
struct Decided {
    refused: Option<Reason>,
    by: Option<String>,
    /// What it would say if dry runs were in force, where that is something else.
    dry_run: Option<String>,
}

struct Verdict {
    decision: Decided,
    way: Way,
    why: &'static str,
    transport: Transport,
}

/// The snapshot as the agent of a node has it.
struct View {
    mesh: Mesh,
    node_addresses: Vec<IpAddr>,
}

impl View {
    fn of(here: Here<'_>, node: Option<Arc<str>>) -> Self {
        let mut mesh = here.mesh.clone();
        match node {
            Some(name) if name != mesh.node.name => {
                mesh.node = Node { name, ..Node::default() };
                Self { mesh, node_addresses: Vec::new() }
            }
            _ => Self { mesh, node_addresses: here.node_addresses.to_vec() },
        }
    }

    fn here(&self) -> Here<'_> {
        Here { mesh: &self.mesh, node_addresses: &self.node_addresses }
    }
}
