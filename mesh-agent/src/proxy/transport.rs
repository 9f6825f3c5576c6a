//! In which way a connection reaches its destination. Pure.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    model::{Identity, Mesh, UpstreamAddr, Workload},
    route::transport::plaintext_to,
};

/// Where a connection goes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// As it is: to what the mesh does not know or does not protect, and within the node.
    Plain(UpstreamAddr),
    /// By mutual TLS to the agent of another node.
    Mutual(Mutual),
}

/// A connection by mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutual {
    /// Who calls.
    pub source: Arc<Identity>,
    /// Who must answer.
    pub expected: Arc<Identity>,
    /// Address of the pod, and the port of its app.
    pub destination: SocketAddr,
}

impl Transport {
    /// What is connected to, in the end.
    pub fn destination(&self) -> SocketAddr {
        match self {
            Self::Plain(upstream) => upstream.0,
            Self::Mutual(mutual) => mutual.destination,
        }
    }
}

/// How `upstream`, which belongs to `target` if the mesh knows it, is to be reached by `source`.
///
/// Whoever is enrolled on another node is called by mutual TLS or not at all. To all else there is only plaintext, from
/// strict workloads as well: strict says who may come in.
pub fn choose(mesh: &Mesh, source: Option<&Workload>, target: Option<&Workload>, upstream: UpstreamAddr) -> Transport {
    match (source, target) {
        (Some(source), Some(target))
            if is_meshed(source)
                && !target.is_on(&mesh.node.name)
                && plaintext_to(Some(target), upstream.0.port()).is_none() =>
        {
            let (source, expected) = (Arc::clone(&source.identity), Arc::clone(&target.identity));
            Transport::Mutual(Mutual { source, expected, destination: upstream.0 })
        }
        _ => Transport::Plain(upstream),
    }
}

fn is_meshed(workload: &Workload) -> bool {
    workload.enrolled && !workload.host_network
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InboundPolicy, Mode, Node, ObjectName};

    fn workload(name: &str, node: Option<&str>) -> Workload {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap();
        let new = Workload::new(ObjectName::new("shop", name), Arc::new(identity));
        Workload { enrolled: true, node: node.map(Arc::from), ..new }
    }

    fn is_mutual(source: &Workload, target: &Workload) -> bool {
        let mesh = Mesh { node: Node { name: "here".into(), ..Node::default() }, ..Mesh::default() };
        let upstream = UpstreamAddr("10.1.2.3:80".parse().unwrap());
        match choose(&mesh, Some(source), Some(target), upstream) {
            Transport::Plain(to) => {
                assert_eq!(to, upstream);
                false
            }
            Transport::Mutual(mutual) => {
                assert_eq!(mutual.destination, upstream.0);
                assert_eq!((&*mutual.source, &*mutual.expected), (&*source.identity, &*target.identity));
                true
            }
        }
    }

    #[test]
    fn what_is_enrolled_on_another_node_is_called_by_mutual_tls() {
        let (client, server) = (workload("client", Some("here")), workload("server", Some("there")));
        assert!(is_mutual(&client, &server));
        assert!(!is_mutual(&client, &workload("server", Some("here"))));
        assert!(!is_mutual(&client, &workload("server", None)), "it belongs to this node");
        let outside = |workload: &Workload| Workload { enrolled: false, ..workload.clone() };
        assert!(!is_mutual(&outside(&client), &server));
        assert!(!is_mutual(&client, &outside(&server)));
        let on_host = |workload: &Workload| Workload { host_network: true, ..workload.clone() };
        assert!(!is_mutual(&on_host(&client), &server));
        assert!(!is_mutual(&client, &on_host(&server)));
    }

    #[test]
    fn the_mode_is_that_of_the_port() {
        let client = workload("client", Some("here"));
        let with = |mode, ports: &[(u16, Mode)]| {
            let policy = Arc::new(InboundPolicy { mode, ports: ports.to_vec(), ..InboundPolicy::default() });
            Workload { policy, ..workload("server", Some("there")) }
        };
        assert!(is_mutual(&client, &with(Mode::Strict, &[])));
        assert!(!is_mutual(&client, &with(Mode::Disabled, &[])));
        assert!(!is_mutual(&client, &with(Mode::Strict, &[(80, Mode::Disabled)])));
        assert!(is_mutual(&client, &with(Mode::Disabled, &[(80, Mode::Permissive)])));
        assert!(is_mutual(&client, &with(Mode::Permissive, &[(81, Mode::Disabled)])));
    }

    #[test]
    fn to_strangers_there_is_only_plaintext() {
        let upstream = UpstreamAddr("10.1.2.3:80".parse().unwrap());
        let strict = Workload { mode: Mode::Strict, ..workload("client", Some("here")) };
        assert_eq!(choose(&Mesh::default(), Some(&strict), None, upstream), Transport::Plain(upstream));
        assert_eq!(choose(&Mesh::default(), None, Some(&strict), upstream), Transport::Plain(upstream));
    }
}
