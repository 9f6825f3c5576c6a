//! The authority as a server: `istio.v1.auth.IstioCertificateService` over TLS.

mod call;
mod caller;
mod limit;
mod tls;

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

pub(super) use self::caller::workload;
pub use self::{
    caller::{Authenticating, Authenticator, Caller, Credentials, Looking, PodDirectory, Tokens},
    limit::Limits,
    tls::Names,
};
use self::{
    limit::{Connections, MAX_HEADERS, Rates},
    tls::Tls,
};
use super::{Authority, Error};
use crate::model::Reason;

/// How often it is looked whether a certificate is to be renewed, and into the authority's folder.
const REFRESH: Duration = Duration::from_secs(1);
/// How long calls under way may take when the server ends.
const DRAIN: Duration = Duration::from_secs(5);

/// What has been answered since the start.
#[derive(Debug, Default)]
pub struct Counts {
    signed: AtomicU64,
    refused: Mutex<BTreeMap<Reason, u64>>,
}

impl Counts {
    fn count(&self, outcome: Result<(), Reason>) {
        match outcome {
            Ok(()) => {
                self.signed.fetch_add(1, Ordering::Relaxed);
            }
            Err(reason) => {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
            }
        }
    }

    /// Certificates signed.
    pub fn signed(&self) -> u64 {
        self.signed.load(Ordering::Relaxed)
    }

    /// Calls refused, by reason.
    pub fn refused(&self) -> BTreeMap<Reason, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What all connections share.
struct Shared {
    authority: Arc<Authority>,
    authenticator: Box<dyn Authenticator>,
    pods: Box<dyn PodDirectory>,
    limits: Limits,
    rates: Rates,
    counts: Arc<Counts>,
}

/// The server.
pub struct Server {
    shared: Arc<Shared>,
    tls: Tls,
}

impl Server {
    /// Makes its own certificate.
    pub fn new(
        authority: Arc<Authority>,
        names: &Names,
        authenticator: Box<dyn Authenticator>,
        pods: Box<dyn PodDirectory>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let tls = Tls::new(&authority, names, SystemTime::now())?;
        let (rates, counts) = (Rates::default(), Arc::default());
        Ok(Self { shared: Arc::new(Shared { authority, authenticator, pods, limits, rates, counts }), tls })
    }

    /// What has been answered.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.shared.counts)
    }

    /// Serves until `end`, and then lets calls under way finish for a few seconds.
    pub async fn run(self, listener: TcpListener, end: impl Future<Output = ()>) {
        let connections = Arc::new(Connections::default());
        let (ending, ended) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut refresh = tokio::time::interval(REFRESH);
        let mut last_error = String::new();
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                _ = refresh.tick() => self.refresh(&mut last_error),
                Some(_) = tasks.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let Some(connected) = connections.enter(peer.ip(), &self.shared.limits) else {
                            self.shared.counts.count(Err(Reason::CaLimited));
                            tracing::debug!(%peer, "too many connections");
                            continue;
                        };
                        let (shared, ended) = (Arc::clone(&self.shared), ended.clone());
                        let acceptor = TlsAcceptor::from(self.tls.config());
                        tasks.spawn(async move {
                            if let Err(error) = connection(shared, acceptor, stream, peer, ended).await {
                                tracing::debug!(%peer, %error, "a connection ended");
                            }
                            drop(connected);
                        });
                    }
                    Err(error) => {
                        // No descriptors, most likely: others have to close theirs first.
                        tracing::warn!(%error, "cannot accept connections");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        drop(listener);
        let _ = ending.send(true);
        let _too_late = timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    }

    fn refresh(&self, last_error: &mut String) {
        let now = SystemTime::now();
        let authority = &self.shared.authority;
        match authority.refresh(now).and_then(|()| self.tls.refresh(authority, now)) {
            Ok(()) => last_error.clear(),
            Err(error) => {
                let error = error.to_string();
                if error != *last_error {
                    tracing::error!(%error, "what was in force stays in force");
                    *last_error = error;
                }
            }
        }
    }
}

/// Serves a connection to its end.
async fn connection(
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    mut ended: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let limits = shared.limits;
    let stream: TlsStream<TcpStream> = timeout(limits.handshake, acceptor.accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    let certificate = certificate.map(|certificate| Arc::new(certificate.into_owned()));
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(limit::MAX_MESSAGE);
    let mut connection = timeout(limits.handshake, builder.handshake::<_, Bytes>(stream)).await??;
    let strangers = Arc::new(AtomicU32::new(0));
    let mut calls = JoinSet::new();
    let mut is_ending = false;
    let age = tokio::time::sleep(limits.age);
    tokio::pin!(age);
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(accepted) = accepted else { break };
                let (request, respond) = accepted?;
                let (shared, certificate, strangers) = (Arc::clone(&shared), certificate.clone(), Arc::clone(&strangers));
                calls.spawn(async move {
                    if !call::serve(&shared, peer, certificate.as_deref(), request, respond).await {
                        strangers.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            Some(_) = calls.join_next() => {
                if strangers.load(Ordering::Relaxed) >= limits.strangers && !is_ending {
                    is_ending = true;
                    connection.graceful_shutdown();
                }
            }
            () = &mut age, if !is_ending => {
                is_ending = true;
                connection.graceful_shutdown();
            }
            () = tokio::time::sleep(limits.idle), if calls.is_empty() && !is_ending => {
                is_ending = true;
                connection.graceful_shutdown();
            }
            // Whoever does not take the hint.
            () = tokio::time::sleep(limits.call), if is_ending => break,
            // An error means that the server is gone, and this task with it.
            _ = ended.wait_for(|ended| *ended), if !is_ending => {
                is_ending = true;
                connection.graceful_shutdown();
            }
        }
    }
    Ok(())
}
