//! What the proxy asks of others: the kernel, and whoever keeps the certificates. The product's answers are the datapath's
//! maps and [`crate::identity`]; tests have their own.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer};
use tokio::{net::TcpStream, sync::watch};

use super::direct::Cacheable;
use crate::model::{Identity, OrigDst, Reachable, Reason};

/// What an accepted socket brings with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// What its client asked for.
    pub destination: OrigDst,
    /// The backend that was drawn for it already, if any.
    pub chosen: Option<SocketAddr>,
    /// Whether its handshake was held until the destination had answered: the upstream connection is there already.
    pub held: bool,
}

/// The kernel, as a worker sees it.
pub trait Kernel {
    /// What an accepted socket brings with it. `None` if the connection was not captured.
    fn original(&self, downstream: &TcpStream) -> Option<Original>;

    /// Says whether `destination` answers the workload in `slot`, for `valid` from now on.
    fn set_reach(&mut self, slot: u32, destination: OrigDst, reachable: Reachable, valid: Duration) -> io::Result<()>;

    /// Lets the app that `upstream` is about to be connected to see `client` as its peer.
    fn show_client(&mut self, upstream: &socket2::Socket, client: SocketAddr) -> io::Result<()>;

    /// Lets later connections of the source in `slot` to `destination` go without the agent.
    fn remember(
        &mut self,
        slot: u32,
        source_generation: u32,
        destination: OrigDst,
        way: &Cacheable<'_>,
    ) -> io::Result<()>;

    /// Says that this worker lives: CLOCK_MONOTONIC now and how late its loop ran, in nanoseconds. `None`: no more
    /// connections, please.
    fn beat(&mut self, worker: u32, beat: Option<(u64, u64)>) -> io::Result<()>;
}

/// The certificates of this node's workloads, as the workers see them. What it answers is current at that instant: it is
/// asked for every handshake.
///
/// Both configurations speak TLS 1.3 only, demand a certificate of the other end and verify that it is a valid SVID of the
/// trust domain; their secrets can be extracted (`enable_secret_extraction`). Whose it is, is for the proxy to compare ([`Certificates::peer`]) before it sends or takes a byte.
pub trait Certificates: Send + Sync {
    /// To call others as `own`. The same `Arc` as long as nothing has changed: another one ends the reuse of connections.
    /// Sessions are resumed by server name: a name stands for one expected identity at one address.
    ///
    /// # Errors
    /// There is no valid certificate for `own`: why.
    fn client(&self, own: &Identity) -> Result<Arc<ClientConfig>, Reason>;

    /// To be called as `own`. The same `Arc` as long as nothing has changed. Which protocols are spoken inside (ALPN) is
    /// for the proxy to add. A session ticket must be good for this identity only.
    ///
    /// # Errors
    /// There is no valid certificate for `own`: why.
    fn server(&self, own: &Identity) -> Result<Arc<ServerConfig>, Reason>;

    /// For [`Reason::CertificateMissing`]: changes when it may have come, while the first one for `own` is on its way.
    /// `None`: there is one, or it was refused, or nobody has asked for it.
    fn awaited(&self, _own: &Identity) -> Option<watch::Receiver<u64>> {
        None
    }

    /// Whose certificate chain (leaf first) this is. `None` if its leaf is not an SVID of a service account.
    fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Identity>;
}
