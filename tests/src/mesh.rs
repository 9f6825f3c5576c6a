//! What most tests of the kernel tier start from: two enrolled pods and the agent.

use std::sync::Arc;

use crate::{Agent, Node, Pod};

/// Two enrolled pods and the agent. Fields are dropped in this order.
#[derive(Debug)]
pub struct Pair {
    /// The agent.
    pub agent: Agent,
    /// The pod that connects.
    pub client: Arc<Pod>,
    /// The pod that is connected to.
    pub server: Arc<Pod>,
    /// Their node.
    pub node: Node,
}

impl Pair {
    /// Everything through the agent.
    pub fn relayed() -> Self {
        Self::new(&["--direct=off"])
    }

    /// Direct where it may be.
    pub fn direct() -> Self {
        Self::new(&[])
    }

    /// With further arguments for the agent.
    pub fn new(arguments: &[&str]) -> Self {
        Self::with(&[], arguments)
    }

    /// With further annotations on the namespace, and arguments for the agent.
    pub fn with(annotations: crate::manifest::Annotations<'_>, arguments: &[&str]) -> Self {
        let node = Node::new();
        let (client, server) = (node.pod("client"), node.pod("server"));
        node.enrol_with(annotations, &[&client, &server]);
        let agent = node.start_with(arguments);
        Self { agent, client, server, node }
    }
}
