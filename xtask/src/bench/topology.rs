//! Two nodes and three pods: the client and one server on node 1, the other server on node 2.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::lab::{agent::NODE, manifests::Pod, network::Network};

/// Prefix of the namespaces: hooks know them by it.
const PREFIX: &str = "mb";
/// Node 1: its bridge, and the address that a proxy shared by its pods listens on.
pub(super) const NODE_1: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 1);
/// Name of node 2, for its agent.
pub(super) const OTHER_NODE: &str = "node-2";
const NODE_2: Ipv4Addr = Ipv4Addr::new(10, 10, 2, 1);
/// The client.
const POD_A: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 2);
/// The server on the client's node.
pub(super) const POD_B: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 3);
/// The server on the other node.
pub(super) const POD_C: Ipv4Addr = Ipv4Addr::new(10, 10, 2, 2);
/// Further pods of node 1 begin here.
const FIRST_IDLE: u8 = 10;

/// Most pods on node 1.
pub(super) const MAX_PODS: usize = 200;

/// The namespaces of a configuration.
pub(super) struct Topology {
    network: Network,
    idle: Vec<(String, Ipv4Addr)>,
}

impl Topology {
    /// Makes them, with `pods` pods on node 1: A, B and idle ones.
    ///
    /// # Errors
    /// `ip` fails.
    pub(super) fn create(pods: usize) -> Result<Self> {
        let mut network = Network::new(PREFIX);
        network.node("n1", NODE_1)?;
        network.node("n2", NODE_2)?;
        network.pod("a", "n1", POD_A, NODE_1)?;
        network.pod("b", "n1", POD_B, NODE_1)?;
        network.pod("c", "n2", POD_C, NODE_2)?;
        network.join(
            ("n1", Ipv4Addr::new(10, 0, 0, 1), "10.10.1.0/24"),
            ("n2", Ipv4Addr::new(10, 0, 0, 2), "10.10.2.0/24"),
        )?;
        let idle = (FIRST_IDLE..).take(pods.clamp(2, MAX_PODS) - 2);
        let idle: Vec<_> = idle.map(|host| (format!("i{host}"), Ipv4Addr::new(10, 10, 1, host))).collect();
        for (short, address) in &idle {
            network.pod(short, "n1", *address, NODE_1)?;
        }
        Ok(Self { network, idle })
    }

    /// Full name of a namespace: `a`, `b`, `c`, `n1`, `n2`.
    pub(super) fn netns(&self, short: &str) -> String {
        self.network.name(short)
    }

    /// The pods as the agents are told of them.
    pub(super) fn pods(&self) -> Vec<Pod> {
        let named = [("a", POD_A, NODE), ("b", POD_B, NODE), ("c", POD_C, OTHER_NODE)]
            .map(|(name, address, node)| (name.to_owned(), address, node));
        let idle = self.idle.iter().map(|(name, address)| (name.clone(), *address, NODE));
        named
            .into_iter()
            .chain(idle)
            .map(|(name, address, node)| Pod { netns: self.network.name(&name), name, address, node })
            .collect()
    }
}
