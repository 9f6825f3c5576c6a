//! The spines of the proxy in this process, with a kernel that tests make up. No privileges needed.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, Receiver, Sender},
    },
    time::Duration,
};

use mesh_agent::{
    model::{
        Endpoint, Mesh, Mode, Node, ObjectName, OrigDst, Reachable, Reason, Service, ServicePort, Target,
        TrafficDistribution, Workload,
    },
    net::netns::Netns,
    proxy::{
        self, Certificates, Command, Config, Kernel, Original, Pod, PodListeners, WorkerHandle, direct::Cacheable,
    },
};
use tokio::sync::watch;

use crate::{
    app::{self, App},
    pki::Nobody,
    socket,
    wait::{PATIENCE, eventually},
};

/// The pod's slot.
pub const SLOT: u32 = 7;
/// The pod that calls.
pub const CLIENT: &str = "client";
/// The pod that is called.
pub const SERVER: &str = "server";

/// What workers asked of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// To let connections go without the agent.
    Remember {
        /// The pod.
        slot: u32,
        /// Its generation.
        source_generation: u32,
        /// Where to.
        destination: SocketAddr,
        /// The backends, and whether they can be reached directly.
        backends: Vec<(SocketAddr, bool)>,
    },
    /// To show an app its client.
    ShowClient(SocketAddr),
}

/// A kernel that knows one answer.
struct Fake {
    original: Arc<Mutex<Option<SocketAddr>>>,
    is_held: Arc<AtomicBool>,
    asked: Sender<Asked>,
    reach: Sender<(SocketAddr, Reachable)>,
}

impl Kernel for Fake {
    fn original(&self, _: &tokio::net::TcpStream) -> Option<Original> {
        let destination = OrigDst((*self.original.lock().unwrap())?);
        Some(Original { destination, chosen: None, held: self.is_held.load(Relaxed) })
    }

    fn set_reach(&mut self, _: u32, to: OrigDst, reachable: Reachable, _: Duration) -> std::io::Result<()> {
        let _ = self.reach.send((to.0, reachable));
        Ok(())
    }

    fn show_client(&mut self, _: &socket2::Socket, client: SocketAddr) -> std::io::Result<()> {
        let _ = self.asked.send(Asked::ShowClient(client));
        Ok(())
    }

    fn remember(
        &mut self,
        slot: u32,
        source_generation: u32,
        destination: OrigDst,
        way: &Cacheable<'_>,
    ) -> std::io::Result<()> {
        let (destination, backends) = (destination.0, way.backends.to_vec());
        let _ = self.asked.send(Asked::Remember { slot, source_generation, destination, backends });
        Ok(())
    }

    fn beat(&mut self, _: u32, _: Option<(u64, u64)>) -> std::io::Result<()> {
        Ok(())
    }
}

/// A worker with one pod.
pub struct Spine {
    /// The worker.
    pub worker: WorkerHandle,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Where the worker takes what the pod opens.
    pub outbound: SocketAddr,
    /// Where it takes what is opened to the pod.
    pub inbound: SocketAddr,
    /// What connections to `outbound` have asked for.
    pub original: Arc<Mutex<Option<SocketAddr>>>,
    /// Whether their handshakes were held.
    pub is_held: Arc<AtomicBool>,
    /// What the worker asks of the kernel.
    pub asked: Receiver<Asked>,
    /// What it says of destinations.
    pub reach: Receiver<(SocketAddr, Reachable)>,
    /// The snapshot.
    pub mesh: watch::Sender<Arc<Mesh>>,
}

/// The configuration of most tests.
pub const CONFIG: Config =
    Config { connect_timeout: Duration::from_secs(5), handshake_timeout: Duration::from_secs(10), direct: true };

impl Spine {
    /// With the client's pod.
    pub fn new(mesh: Mesh) -> Self {
        Self::with(mesh, CONFIG)
    }

    /// As [`Spine::new`], with another configuration.
    pub fn with(mesh: Mesh, config: Config) -> Self {
        Self::start(mesh, config, CLIENT, (Ipv4Addr::LOCALHOST, 0).into(), Arc::new(Nobody))
    }

    /// With a pod of that name, to which others come at `inbound`.
    pub fn start(
        mesh: Mesh,
        config: Config,
        pod: &str,
        inbound: SocketAddr,
        certificates: Arc<dyn Certificates>,
    ) -> Self {
        let (tell, asked) = mpsc::channel();
        let (tell_reach, reach) = mpsc::channel();
        let (original, is_held) = (Arc::default(), Arc::default());
        let kernel =
            Fake { original: Arc::clone(&original), is_held: Arc::clone(&is_held), asked: tell, reach: tell_reach };
        let (mesh, receiver) = watch::channel(Arc::new(mesh));
        let worker = proxy::spawn(0, 0, config, Box::new(kernel), Arc::default(), certificates, receiver).unwrap();
        let netns = Arc::new(Netns::open(Path::new("/proc/self/ns/net")).unwrap());
        let pod = Arc::new(Pod::new(name(pod), SLOT, netns, 1));
        pod.set_generation(3);
        let listen = |at: SocketAddr| TcpListener::bind(at).unwrap();
        let listeners = PodListeners { outbound: listen((Ipv4Addr::LOCALHOST, 0).into()), inbound: listen(inbound) };
        for listener in [&listeners.outbound, &listeners.inbound] {
            listener.set_nonblocking(true).unwrap();
        }
        let (outbound, inbound) = (listeners.outbound.local_addr().unwrap(), listeners.inbound.local_addr().unwrap());
        worker.send(Command::Add(Arc::clone(&pod), listeners));
        Self { worker, pod, outbound, inbound, original, is_held, asked, reach, mesh }
    }

    /// Connects as an app that asked for `to`.
    pub fn connect(&self, to: SocketAddr) -> TcpStream {
        self.try_connect(to).unwrap()
    }

    /// As [`Spine::connect`], where that may fail.
    ///
    /// # Errors
    /// What connect() says.
    pub fn try_connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        *self.original.lock().unwrap() = Some(to);
        socket::connect_here(self.outbound)
    }

    /// Connects as an app that asked for `to`, and meets an error.
    pub fn fails(&self, to: SocketAddr, reason: Reason) {
        assert!(socket::met_reset(self.try_connect(to)), "{to}");
        self.await_reason(reason);
    }

    /// Waits until connections have ended for that reason.
    pub fn await_reason(&self, reason: Reason) {
        eventually(&format!("{reason} is counted"), || {
            self.worker.counters.reasons().any(|(ended, n)| ended == reason && n == 1).then_some(())
        });
    }

    /// What the worker asks of the kernel next.
    pub fn asked(&self) -> Asked {
        self.asked.recv_timeout(PATIENCE).unwrap()
    }

    /// Bytes of the pod's outbound connections, up and down.
    pub fn totals(&self) -> (u64, u64) {
        let counters = &self.pod.counters[0].outbound;
        (counters.to_upstream.value(), counters.to_downstream.value())
    }
}

/// A name in the tests' namespace.
pub fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

/// An enrolled pod of this node.
pub fn workload(called: &str, address: IpAddr, mode: Mode) -> Arc<Workload> {
    let identity = Arc::new("spiffe://cluster.local/ns/shop/sa/default".parse().unwrap());
    Arc::new(Workload {
        node: None,
        addresses: vec![address],
        netns: None,
        host_network: false,
        enrolled: true,
        mode,
        ..Workload::new(name(called), identity)
    })
}

/// A mesh with the client, and a server at `address`.
pub fn mesh(address: IpAddr, mode: Mode) -> Mesh {
    let client = workload(CLIENT, Ipv4Addr::new(192, 0, 2, 1).into(), mode);
    let server = workload(SERVER, address, mode);
    let mut mesh = Mesh {
        version: 1,
        node: Node { name: "node-1".into(), ..Node::default() },
        destinations: [(address, Target::Workload(Arc::clone(&server)))].into(),
        ..Mesh::default()
    };
    mesh.put(client);
    mesh.put(server);
    mesh
}

/// Adds a service at `address` to the mesh, with endpoints that no pod is known of.
pub fn with_service(mut mesh: Mesh, address: SocketAddr, endpoints: &[SocketAddr]) -> Mesh {
    let endpoint = |at: &SocketAddr| Endpoint {
        address: at.ip(),
        port: at.port(),
        ready: true,
        draining: false,
        node: None,
        zone: None,
        workload: mesh.workload_at(at.ip()).cloned(),
    };
    let endpoints = endpoints.iter().map(endpoint).collect();
    let service = Arc::new(Service {
        name: name("web"),
        addresses: vec![address.ip()],
        ports: vec![ServicePort { port: address.port(), name: "".into(), endpoints, list: 9 }],
        distribution: TrafficDistribution::Any,
    });
    mesh.destinations.insert(address.ip(), Target::Service(service));
    mesh
}

/// An app on loopback.
pub fn echo() -> App {
    App::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), app::echo)
}
