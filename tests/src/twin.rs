//! Two agents in this process, as if each were on a node of its own: a client's and a server's.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
};

use mesh_agent::{
    model::{Identity, Mesh, Mode, Node, Target, Workload},
    proxy::{Certificates, Config, hbone},
};

use crate::{
    App, Spine,
    pki::{Authority, Store},
    spine::{CLIENT, CONFIG, SERVER, workload},
};

/// The client's pod, where nobody looks.
const CLIENT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// The two agents.
pub struct Twin {
    /// Who vouches for both.
    pub authority: Arc<Authority>,
    /// The certificates of the client's agent.
    pub client_store: Arc<Store>,
    /// The certificates of the server's agent.
    pub server_store: Arc<Store>,
    /// The client's agent.
    pub client: Spine,
    /// The server's agent.
    pub server: Spine,
    /// The address of the server's pod.
    pub at: IpAddr,
}

/// An address on loopback that no other test of this process has.
pub fn address() -> IpAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 44, high, low).into()
}

/// `spiffe://cluster.local/ns/shop/sa/NAME`.
pub fn identity(name: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()
}

/// The mesh as the agent of node `here` sees it.
pub fn mesh(here: &str, server: IpAddr) -> Mesh {
    let on = |pod: &str, address, node: &str| {
        let pod = Arc::unwrap_or_clone(workload(pod, address, Mode::Strict));
        let identity = Arc::new(identity(&pod.name.name));
        Arc::new(Workload { node: Some(node.into()), identity, ..pod })
    };
    let client = on(CLIENT, CLIENT_ADDRESS, "node-1");
    let server = on(SERVER, server, "node-2");
    let known = |workload: &Arc<Workload>| (workload.addresses[0], Target::Workload(Arc::clone(workload)));
    let mut mesh = Mesh {
        version: 1,
        node: Node { name: here.into(), ..Node::default() },
        destinations: [known(&client), known(&server)].into(),
        ..Mesh::default()
    };
    mesh.put(client);
    mesh.put(server);
    mesh
}

impl Default for Twin {
    fn default() -> Self {
        let authority = Arc::new(Authority::default());
        Self::with(&authority, &authority)
    }
}

impl Twin {
    /// With an authority for each agent.
    pub fn with(clients: &Arc<Authority>, servers: &Arc<Authority>) -> Self {
        Self::configured(clients, servers, CONFIG)
    }

    /// With a configuration for both.
    pub fn configured(clients: &Arc<Authority>, servers: &Arc<Authority>, config: Config) -> Self {
        let at = address();
        let (client_store, server_store) = (Store::new(clients), Store::new(servers));
        let nowhere = (Ipv4Addr::LOCALHOST, 0).into();
        let client = Spine::start(mesh("node-1", at), config, CLIENT, nowhere, client_store.clone());
        let server = start_server(at, config, server_store.clone());
        Self { authority: Arc::clone(clients), client_store, server_store, client, server, at }
    }

    /// An app in the server's pod.
    pub fn app(&self, serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> App {
        App::new(TcpListener::bind((self.at, 0)).unwrap(), serve)
    }

    /// Where the server's agent takes tunnels.
    pub fn tunnels(&self) -> SocketAddr {
        (self.at, hbone::PORT).into()
    }
}

/// The server's agent alone.
pub fn start_server(at: IpAddr, config: Config, store: Arc<dyn Certificates>) -> Spine {
    Spine::start(mesh("node-2", at), config, SERVER, (at, hbone::PORT).into(), store)
}
