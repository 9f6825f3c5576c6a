//! Two nodes and the link between them: routed, IPv4 and IPv6, without NAT.

use std::sync::Arc;

use crate::{Agent, Capture, Node, Pod, manifest};

/// The link's interface, at both of its ends.
const LINK: &str = "up0";

/// Two joined nodes with one authority. Each has a folder of manifests of its own; what is written here goes to both.
#[derive(Debug)]
pub struct Cluster {
    /// `node-1`.
    pub one: Node,
    /// `node-2`.
    pub two: Node,
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// Two nodes without pods.
    pub fn new() -> Self {
        let (one, mut two) = (Node::new(), Node::numbered(2));
        two.ca_root.clone_from(&one.ca_root);
        // With the same index at both ends Linux takes them for one link, and tells of its carrier a second late.
        one.namespace.batch(&format!(
            "link add {LINK} index 1001 type veth peer name {LINK} index 1002 netns {}\n",
            two.namespace.name()
        ));
        for (here, there, own, other) in [(&one, &two, 1, 2), (&two, &one, 2, 1)] {
            here.namespace.batch(&format!(
                "addr add 172.31.77.{own}/30 dev {LINK}\n\
                 addr add fd78::{own}/64 dev {LINK} nodad\n\
                 link set {LINK} up\n\
                 route add {}/24 via 172.31.77.{other}\n\
                 route add {}/64 via fd78::{other}\n",
                there.subnet().0,
                there.subnet().1,
            ));
            here.namespace.set("ipv4/ip_forward", "1");
            here.namespace.set("ipv6/conf/all/forwarding", "1");
        }
        Self { one, two }
    }

    /// Both nodes.
    pub fn nodes(&self) -> [&Node; 2] {
        [&self.one, &self.two]
    }

    /// Replaces a file of the manifests of both nodes.
    pub fn write(&self, file: &str, text: &str) {
        for node in self.nodes() {
            node.write(file, text);
        }
    }

    /// Writes the namespace of the pods, enrolled, and the pods in it, for both nodes.
    pub fn enrol_with(&self, annotations: manifest::Annotations<'_>, pods: &[&Pod]) {
        let mut all = vec![("mesh", "enabled")];
        all.extend_from_slice(annotations);
        self.write("pods.yaml", &manifest::pods(&all, pods));
    }

    /// Listens to all that crosses the link from now on.
    pub fn capture(&self) -> Capture {
        Capture::start(&self.one, LINK)
    }
}

/// Two nodes with an agent and a pod each. Fields are dropped in this order.
#[derive(Debug)]
pub struct Cross {
    /// The agent of the client's node.
    pub near: Agent,
    /// The agent of the server's node.
    pub far: Agent,
    /// The pod that connects, on the first node.
    pub client: Arc<Pod>,
    /// The pod that is connected to, on the second.
    pub server: Arc<Pod>,
    /// Their nodes.
    pub cluster: Cluster,
}

impl Default for Cross {
    fn default() -> Self {
        Self::new()
    }
}

impl Cross {
    /// Both pods enrolled.
    pub fn new() -> Self {
        Self::with(&[], &[])
    }

    /// With further annotations on the namespace, and arguments for both agents.
    pub fn with(annotations: manifest::Annotations<'_>, arguments: &[&str]) -> Self {
        Self::start(Cluster::new(), annotations, [arguments; 2])
    }

    /// As [`Cross::with`], with arguments for each agent, on nodes that are there.
    pub fn start(cluster: Cluster, annotations: manifest::Annotations<'_>, arguments: [&[&str]; 2]) -> Self {
        let (client, server) = (cluster.one.pod("client"), cluster.two.pod("server"));
        cluster.enrol_with(annotations, &[&client, &server]);
        let [near, far] = arguments;
        let (near, far) = (cluster.one.start_with(near), cluster.two.start_with(far));
        Self { near, far, client, server, cluster }
    }

    /// Does something to the manifests and waits until it is in force on both nodes.
    pub fn after<T>(&self, change: impl FnOnce() -> T) -> T {
        self.near.after(|| self.far.after(change))
    }

    /// Both agents.
    pub fn agents(&self) -> [&Agent; 2] {
        [&self.near, &self.far]
    }

    /// Waits until no connection is open on either node, and asserts that nothing was lost or passed unseen.
    pub fn assert_all_accounted(&self) {
        self.near.settled("client");
        self.far.settled("server");
        for agent in self.agents() {
            agent.assert_all_accounted();
        }
    }
}
