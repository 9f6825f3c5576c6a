//! Connections to agents of other nodes: a worker keeps them for the connections to come.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::sync::Semaphore;

use super::{
    Error, Pod, Worker,
    hbone::{
        self, Stream,
        client::{self, Call, Refused, Tunnels},
    },
    tls::{self, Session, TlsStream},
    transport::Mutual,
    upstream,
};
use crate::model::{Identity, Reason, UpstreamAddr};

/// Connections that are tried before an open request is given up: others may end just as it comes.
const TRIES: usize = 3;

/// Connections of one key that are crowded and still have room: beyond that, others are not opened for it.
const MOST_CROWDED: usize = 4;

/// Who calls whom. The pod belongs to it: a connection is made from within it and shows its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    slot: u32,
    source: Arc<Identity>,
    expected: Arc<Identity>,
    at: IpAddr,
}

/// What is kept.
#[derive(Default)]
pub(super) struct Pool(RefCell<HashMap<Key, Rc<Peer>>>);

/// The connections of one key.
struct Peer {
    /// One is made at a time: who waits finds what the first one has made.
    connecting: Semaphore,
    /// When that has failed last, and why.
    failed: Cell<Option<(Instant, Reason)>>,
    open: RefCell<Vec<Entry>>,
}

struct Entry {
    tunnels: Tunnels,
    /// With another certificate, or other roots, it serves no new connections.
    config: Arc<ClientConfig>,
}

impl Pool {
    /// Opens a tunnel for `client`, on a connection that is there or a new one.
    pub(super) async fn open(
        &self,
        worker: &Rc<Worker>,
        pod: &Arc<Pod>,
        to: &Mutual,
        client: SocketAddr,
        trace: &str,
    ) -> Result<Stream, Error> {
        let (source, expected) = (Arc::clone(&to.source), Arc::clone(&to.expected));
        let key = Key { slot: pod.slot, source, expected, at: to.destination.ip() };
        let timeout = worker.config.connect_timeout;
        let call = Call { destination: to.destination, client, source: &pod.name, trace, timeout };
        for _ in 0..TRIES {
            let tunnels = self.tunnels(worker, pod, &key).await?;
            match tunnels.call(call).await {
                Ok(stream) => return Ok(stream),
                Err(Refused::For(error)) => return Err(error),
                Err(Refused::Unseen) => tunnels.streams().retire(),
            }
        }
        Err(Error::Tunnel(Reason::UpstreamReset))
    }

    /// A pod is gone, or no longer captured. Connections end when their last tunnel does.
    pub(super) fn close(&self, slot: u32) {
        self.0.borrow_mut().retain(|key, _| key.slot != slot);
    }

    async fn tunnels(&self, worker: &Rc<Worker>, pod: &Arc<Pod>, key: &Key) -> Result<Tunnels, Error> {
        let ask = || worker.certificates.client(&key.source).map_err(Error::Tunnel);
        let config = worker.certified(&key.source, ask, worker.config.connect_timeout).await?;
        let peer = Rc::clone(self.0.borrow_mut().entry(key.clone()).or_default());
        if let Some(tunnels) = peer.usable(&config) {
            return Ok(tunnels);
        }
        let asked = Instant::now();
        let Ok(_permit) = peer.connecting.acquire().await else { return Err(Error::Tunnel(Reason::Internal)) };
        if let Some(tunnels) = peer.usable(&config) {
            return Ok(tunnels);
        }
        if let Some((_, reason)) = peer.failed.get().filter(|(at, _)| *at > asked) {
            return Err(Error::Tunnel(reason));
        }
        let result = connect(worker, pod, key, &config).await;
        let (tunnels, connection) = result.inspect_err(|error| {
            peer.failed.set(Some((Instant::now(), error.reason())));
        })?;
        peer.open.borrow_mut().push(Entry { tunnels: tunnels.clone(), config });
        let (streams, own, key) = (Arc::clone(tunnels.streams()), Rc::clone(worker), key.clone());
        worker.serve(pod, async move {
            client::run(connection, streams).await;
            own.pool.forget(&key);
        });
        Ok(tunnels)
    }

    /// A connection has ended.
    fn forget(&self, key: &Key) {
        let mut peers = self.0.borrow_mut();
        let Some(peer) = peers.get(key) else { return };
        let mut open = peer.open.borrow_mut();
        open.retain(|entry| !entry.tunnels.is_over());
        let is_empty = open.is_empty() && peer.connecting.available_permits() > 0;
        drop(open);
        if is_empty {
            peers.remove(key);
        }
    }
}

impl Default for Peer {
    fn default() -> Self {
        Self { connecting: Semaphore::new(1), failed: Cell::default(), open: RefCell::default() }
    }
}

impl Peer {
    /// A connection that has room, one where apps that do not read are in nobody's way, unless there are many others
    /// already. Those that are to be used no more are let go.
    fn usable(&self, config: &Arc<ClientConfig>) -> Option<Tunnels> {
        let mut open = self.open.borrow_mut();
        open.retain(|entry| !entry.tunnels.is_over() && Arc::ptr_eq(&entry.config, config));
        let with_room = || open.iter().map(|entry| &entry.tunnels).filter(|tunnels| tunnels.has_room());
        with_room().find(|tunnels| !tunnels.is_crowded()).or_else(|| with_room().nth(MOST_CROWDED - 1)).cloned()
    }
}

async fn connect(
    worker: &Worker,
    pod: &Pod,
    key: &Key,
    config: &Arc<ClientConfig>,
) -> Result<(Tunnels, h2::client::Connection<TlsStream, bytes::Bytes>), Error> {
    let stream = shake_hands(worker, pod, key, config).await?;
    if stream.protocol() != Some(hbone::ALPN) {
        return Err(Error::Tunnel(Reason::TlsHandshake));
    }
    client::start(stream).await
}

/// A TLS connection to exactly who is expected.
async fn shake_hands(worker: &Worker, pod: &Pod, key: &Key, config: &Arc<ClientConfig>) -> Result<TlsStream, Error> {
    let at = UpstreamAddr(SocketAddr::new(key.at, hbone::PORT));
    // Nobody listens there: its agent does not serve that pod, or not any more.
    let absent = |error: Error| match error.reason() {
        Reason::UpstreamRefused | Reason::UpstreamReset => Error::Tunnel(Reason::PeerAbsent),
        _ => error,
    };
    let socket = upstream::connect(worker, pod, at).await.map_err(absent)?;
    socket.set_nodelay(true).map_err(Error::Connect)?;
    let session = Session::client(Arc::clone(config), name(key)?, &[hbone::ALPN])
        .map_err(|_| Error::Tunnel(Reason::TlsHandshake))?;
    let stream = tls::handshake(socket, session, worker.config.handshake_timeout, Reason::PeerAbsent).await?;
    match worker.certificates.peer(stream.peer()) {
        Some(identity) if identity == *key.expected => Ok(stream),
        Some(identity) => {
            tracing::warn!(pod = %pod.name, at = %key.at, expected = %key.expected, found = %identity,
                reason = Reason::PeerUnexpected.code(), "another workload answers");
            Err(Error::Tunnel(Reason::PeerUnexpected))
        }
        None => Err(Error::Tunnel(Reason::PeerUnidentified)),
    }
}

/// What sessions are kept under: who is expected, and where, so that a ticket meets the agent that gave it. Where two
/// names collide a session is resumed with the wrong peer, which is noticed as ever.
fn name(key: &Key) -> Result<ServerName<'static>, Error> {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, &key.expected, key.at).hash(&mut hasher);
        hasher.finish()
    };
    let name = format!("{:016x}{:016x}.mesh", half(0), half(1));
    ServerName::try_from(name).map_err(|_| Error::Tunnel(Reason::Internal))
}
