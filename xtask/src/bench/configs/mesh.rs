//! Our agent, on node 1 or on both.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{
    bench::{
        rig::Rig,
        topology::{OTHER_NODE, Topology},
    },
    lab::{
        accounts::Role,
        agent::{Agent, DISABLED, ENABLED, NODE, Source},
        manifests::Manifests,
        poll,
    },
};

/// Ports that the load goes to, HTTP, echo and sink: the first connection to each is relayed, for the agent to decide.
const DESTINATIONS: u64 = 3;

/// The namespace of the pods of the bench.
const NAMESPACE: &str = "bench";

/// How connections are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Enrolled, and connected by the kernel.
    Direct,
    /// Enrolled, and every byte through the agent.
    Relay,
    /// Not enrolled: what do those pay who want no mesh?
    Off,
    /// Enrolled, on two nodes with an agent each, and encrypted between them.
    Cross(Identities),
}

/// Whom the client's agent keeps certificates for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identities {
    /// The pods of the bench.
    Few,
    /// [`CROWD`] others beside them.
    Many,
    /// So many, and each is renewed every few seconds.
    Rotating,
}

/// More service accounts than a node has.
const CROWD: usize = 500;
/// The shortest there is: renewed at half of it.
const SHORT_LIFE: &str = "10s";

/// The running agent, or both.
pub(super) struct Mesh {
    way: Way,
    /// The client's first.
    agents: Vec<Agent>,
}

impl Mesh {
    /// Starts what is needed and waits until all pods are as they should be.
    ///
    /// # Errors
    /// They don't get there.
    pub(super) fn start(rig: &Rig, topology: &Topology, way: Way) -> Result<Self> {
        let manifests = Manifests::create(rig.workspace.path().join("manifests"), NAMESPACE, &topology.pods())?;
        manifests.enroll(way != Way::Off)?;
        let nodes = [("n1", NODE), ("n2", OTHER_NODE)];
        let mut agents = Vec::new();
        let more: &[&str] = match way {
            Way::Relay => &["--direct=off"],
            Way::Cross(Identities::Rotating) => &["--certificate-lifetime", SHORT_LIFE],
            _ => &[],
        };
        for (netns, node) in nodes.into_iter().take(if matches!(way, Way::Cross(_)) { 2 } else { 1 }) {
            let netns = topology.netns(netns);
            let launch = rig.launch(&netns, Role::Proxy);
            let agent =
                Agent::start(&launch, &rig.workspace, rig.agent.clone(), node, &Source::Manifests(&manifests), more)?;
            agent.await_pods(NAMESPACE, if way == Way::Off { &DISABLED } else { &ENABLED })?;
            agents.push(agent);
        }
        if let (Way::Cross(Identities::Many | Identities::Rotating), Some(agent)) = (way, agents.first()) {
            manifests.crowd(NODE, CROWD)?;
            poll("certificates", Duration::from_mins(1), || Ok((certificates(agent) >= CROWD).then_some(())))?;
        }
        Ok(Self { way, agents })
    }

    /// Their processes.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.agents.iter().map(Agent::pid).collect()
    }

    /// The ends of their logs.
    pub(super) fn last_words(&self) -> String {
        self.agents.iter().map(Agent::last_words).collect::<Vec<_>>().join("\n")
    }

    /// By the agent's own books. The first connection to a destination is relayed, until the kernel has the decision.
    pub(super) fn verify(&self) -> Result<()> {
        let status = self.agents.first().context("no agent")?.status()?;
        let client =
            status.pods.iter().find(|pod| pod.name.name == "a").context("pod a is not in the agent's status")?;
        let (direct, relayed, captured) = (client.direct_total, client.outbound.total, client.captured);
        let well = match self.way {
            Way::Direct => direct > 0 && relayed <= DESTINATIONS,
            Way::Relay | Way::Cross(_) => direct == 0 && relayed > 0,
            Way::Off => captured == 0 && direct == 0 && relayed == 0,
        };
        if !well {
            let way = self.way;
            bail!(
                "not what was to be measured ({way:?}): pod a has {direct} direct, {relayed} relayed, {captured} captured connections"
            );
        }
        let agent = self.agents.first().context("no agent")?;
        if self.way == Way::Cross(Identities::Rotating) && certificates(agent) < 2 * CROWD {
            bail!("not what was to be measured: {} certificates in all", certificates(agent));
        }
        Ok(())
    }
}

/// Certificates that an agent has got since its start.
fn certificates(agent: &Agent) -> usize {
    agent.log().lines().filter(|line| line.contains("certificate in use")).count()
}
