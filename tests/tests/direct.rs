//! The two spines of the proxy in this process, with a kernel that tests make up. No privileges needed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, Sender},
    },
    time::Duration,
};

use mesh_agent::{
    model::{
        Destination, Endpoint, Mesh, Mode, Node, ObjectName, OrigDst, Reachable, Reason, Service, ServicePort, Target,
        TrafficDistribution, Workload,
    },
    net::netns::Netns,
    proxy::{self, Command, Config, Kernel, Original, Pod, PodListeners, WorkerHandle, direct::Cacheable},
};
use mesh_tests::{App, app, eventually, socket, wait::PATIENCE};
use tokio::sync::{oneshot, watch};

const SLOT: u32 = 7;
const CLIENT: &str = "client";
const SERVER: &str = "server";

/// What workers asked of the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Remember { slot: u32, source_generation: u32, destination: SocketAddr, backends: Vec<(SocketAddr, bool)> },
    ShowClient(SocketAddr),
}

/// A kernel that knows one answer.
struct Fake {
    original: Arc<Mutex<Option<SocketAddr>>>,
    asked: Sender<Asked>,
}

impl Kernel for Fake {
    fn original(&self, _: &tokio::net::TcpStream) -> Option<Original> {
        let destination = OrigDst((*self.original.lock().unwrap())?);
        Some(Original { destination, chosen: None, held: false })
    }

    fn set_reach(&mut self, _: u32, _: OrigDst, _: Reachable, _: Duration) -> std::io::Result<()> {
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
struct Spine {
    worker: WorkerHandle,
    pod: Arc<Pod>,
    outbound: SocketAddr,
    inbound: SocketAddr,
    original: Arc<Mutex<Option<SocketAddr>>>,
    asked: Receiver<Asked>,
    mesh: watch::Sender<Arc<Mesh>>,
}

impl Spine {
    fn new(mesh: Mesh) -> Self {
        Self::with(mesh, Config { connect_timeout: Duration::from_secs(5), direct: true })
    }

    fn with(mesh: Mesh, config: Config) -> Self {
        let (tell, asked) = mpsc::channel();
        let original = Arc::default();
        let kernel = Fake { original: Arc::clone(&original), asked: tell };
        let (mesh, receiver) = watch::channel(Arc::new(mesh));
        let worker = proxy::spawn(0, 0, config, Box::new(kernel), Arc::default(), receiver).unwrap();
        let netns = Netns::open(Path::new("/proc/self/ns/net")).unwrap();
        let pod = Arc::new(Pod::new(name(CLIENT), SLOT, netns, 1));
        pod.set_generation(3);
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listeners = PodListeners { outbound: listen(), inbound: listen() };
        for listener in [&listeners.outbound, &listeners.inbound] {
            listener.set_nonblocking(true).unwrap();
        }
        let (outbound, inbound) = (listeners.outbound.local_addr().unwrap(), listeners.inbound.local_addr().unwrap());
        worker.send(Command::Add(Arc::clone(&pod), listeners));
        Self { worker, pod, outbound, inbound, original, asked, mesh }
    }

    /// Connects as an app that asked for `to`.
    fn connect(&self, to: SocketAddr) -> TcpStream {
        self.try_connect(to).unwrap()
    }

    fn try_connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        *self.original.lock().unwrap() = Some(to);
        socket::connect_here(self.outbound)
    }

    /// Connects as an app that asked for `to`, and meets an error.
    fn fails(&self, to: SocketAddr, reason: Reason) {
        // The reset may be there before connect() has returned.
        let error = self.try_connect(to).and_then(|mut socket| socket.read(&mut [0; 1])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        self.await_reason(reason);
    }

    fn await_reason(&self, reason: Reason) {
        eventually(&format!("{reason} is counted"), || {
            self.worker.counters.reasons().any(|(ended, n)| ended == reason && n == 1).then_some(())
        });
    }

    fn asked(&self) -> Asked {
        self.asked.recv_timeout(PATIENCE).unwrap()
    }

    fn totals(&self) -> (u64, u64) {
        let counters = &self.pod.counters[0].outbound;
        (counters.to_upstream.value(), counters.to_downstream.value())
    }
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn workload(called: &str, address: IpAddr, mode: Mode) -> Arc<Workload> {
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
fn mesh(address: IpAddr, mode: Mode) -> Mesh {
    let client = workload(CLIENT, Ipv4Addr::new(192, 0, 2, 1).into(), mode);
    let server = workload(SERVER, address, mode);
    Mesh {
        version: 1,
        node: Node { name: "node-1".into(), ..Node::default() },
        destinations: [(address, Destination { target: Target::Workload(Arc::clone(&server)), generation: 1 })].into(),
        workloads: [client, server].map(|workload| (workload.name.clone(), workload)).into(),
        ..Mesh::default()
    }
}

/// Adds a service at `address` to the mesh, with endpoints that no pod is known of.
fn with_service(mut mesh: Mesh, address: SocketAddr, endpoints: &[SocketAddr]) -> Mesh {
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
    mesh.destinations.insert(address.ip(), Destination { target: Target::Service(service), generation: 2 });
    mesh
}

fn echo() -> App {
    App::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), app::echo)
}

const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

#[test]
fn what_the_mesh_does_not_know_is_passed_on_as_asked() {
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    let app = echo();
    let stream = spine.connect(app.address);
    socket::exchange(&stream, "hello").unwrap();
    socket::finish(stream).unwrap();
    spine.await_reason(Reason::Ok);
    assert_eq!(spine.totals(), (5, 5));
    assert!(spine.asked.try_recv().is_err(), "nothing is known, nothing is remembered");
}

#[test]
fn a_pod_of_this_node_is_remembered_as_direct() {
    let app = echo();
    let spine = Spine::new(mesh(app.address.ip(), Mode::Permissive));
    let stream = spine.connect(app.address);
    socket::exchange(&stream, "hello").unwrap();
    let destination = app.address;
    assert_eq!(spine.asked(), Asked::Remember { slot: SLOT, source_generation: 3, destination, backends: Vec::new() });
}

#[test]
fn with_direct_off_nothing_is_remembered() {
    let app = echo();
    let config = Config { connect_timeout: Duration::from_secs(5), direct: false };
    let spine = Spine::with(mesh(app.address.ip(), Mode::Permissive), config);
    socket::finish(spine.connect(app.address)).unwrap();
    spine.await_reason(Reason::Ok);
    assert!(spine.asked.try_recv().is_err());
}

#[test]
fn a_service_leads_to_its_endpoints_and_their_ways_are_remembered() {
    let app = echo();
    let vip = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 99), 80));
    let spine = Spine::new(with_service(mesh(app.address.ip(), Mode::Permissive), vip, &[app.address]));
    let stream = spine.connect(vip);
    socket::exchange(&stream, "hello").unwrap();
    let backends = vec![(app.address, true)];
    assert_eq!(spine.asked(), Asked::Remember { slot: SLOT, source_generation: 3, destination: vip, backends });
}

#[test]
fn a_new_snapshot_is_in_force_for_the_next_connection() {
    let (first, second) = (echo(), echo());
    let vip = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 99), 80));
    let with = |app: &App| with_service(mesh(ELSEWHERE, Mode::Permissive), vip, &[app.address]);
    let spine = Spine::new(with(&first));
    let old = spine.connect(vip);
    socket::exchange(&old, "hello").unwrap();
    spine.mesh.send_replace(Arc::new(with(&second)));
    let new = spine.connect(vip);
    socket::exchange(&new, "hello").unwrap();
    assert!(second.try_seen().is_some() && first.try_seen().is_some() && first.try_seen().is_none());
    socket::exchange(&old, "undisturbed").unwrap();
}

#[test]
fn a_connection_without_an_original_destination_goes_nowhere() {
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    let mut stream = socket::connect_here(spine.outbound).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    spine.await_reason(Reason::NoOriginalDestination);
}

#[test]
fn a_service_without_the_port_or_without_endpoints_refuses() {
    let vip = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 99), 80));
    let spine = Spine::new(with_service(mesh(ELSEWHERE, Mode::Permissive), vip, &[]));
    spine.fails(vip, Reason::NoEndpoints);
    spine.fails((vip.ip(), 81).into(), Reason::UnknownServicePort);
}

#[test]
fn a_closed_port_is_blamed_on_the_server() {
    let app = echo();
    let closed = app.address;
    drop(app);
    Spine::new(mesh(ELSEWHERE, Mode::Permissive)).fails(closed, Reason::UpstreamRefused);
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    // A listener whose queue is full is as silent as a black hole.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let to = listener.local_addr().unwrap().as_socket().unwrap();
    let _queued: Vec<_> =
        (0..3).map_while(|_| TcpStream::connect_timeout(&to, Duration::from_millis(100)).ok()).collect();
    let config = Config { connect_timeout: Duration::from_millis(300), direct: true };
    Spine::with(mesh(ELSEWHERE, Mode::Permissive), config).fails(to, Reason::UpstreamTimeout);
}

#[test]
fn what_dials_the_agents_inbound_port_itself_is_refused() {
    // sk_lookup steers only what comes from outside the pod. Going on would dial the same listener again, without end.
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    let mut stream = socket::connect_here(spine.inbound).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    spine.await_reason(Reason::NoOriginalDestination);
    assert!(spine.asked.try_recv().is_err());
}

#[test]
fn a_drain_ends_when_the_last_connection_does() {
    let app = echo();
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    let stream = spine.connect(app.address);
    socket::exchange(&stream, "before").unwrap();
    let (done, mut wait) = oneshot::channel();
    spine.worker.send(Command::Drain(done));
    eventually("no more are accepted", || TcpStream::connect(spine.outbound).is_err().then_some(()));
    socket::exchange(&stream, "meanwhile").unwrap();
    assert!(wait.try_recv().is_err(), "it waits for the open one");
    socket::finish(stream).unwrap();
    eventually("the drain ends", || wait.try_recv().ok());
}

#[test]
fn aborted_connections_end_with_a_reset_and_the_reason() {
    let app = echo();
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    let mut stream = spine.connect(app.address);
    socket::exchange(&stream, "before").unwrap();
    spine.worker.send(Command::AbortAll(Reason::Drained));
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    spine.await_reason(Reason::Drained);
}

#[test]
fn bytes_are_counted_while_the_connection_is_open() {
    let app = echo();
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    let mut stream = spine.connect(app.address);
    for n in 1..=3 {
        stream.write_all(b"0123456789").unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        eventually("they are counted", || (spine.totals() == (n * 10, n * 10)).then_some(()));
    }
}
