//! A small authority, a clock, and TLS connections within this memory.

mod peers;
mod resumption;
mod rotation;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    time_provider::TimeProvider,
};
use tokio::{sync::watch, time::Instant};

use super::{CertificateAuthority, Fetching, Identities, Refusal, Settings, Svid, TrustBundle, handshake_reason};
use crate::model::{Identity, Reason};

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const DOMAIN: &str = "cluster.local";

fn identity(name: &str) -> Identity {
    format!("spiffe://{DOMAIN}/ns/shop/sa/{name}").parse().unwrap()
}

/// The time of day, from 2027 on: as tokio's clock goes, and as it is set.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    start: Instant,
    advanced: Arc<AtomicU64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), advanced: Arc::new(AtomicU64::new(1_800_000_000)) }
    }

    pub(super) fn advance(&self, by: Duration) {
        self.advanced.fetch_add(by.as_secs(), Ordering::Relaxed);
    }

    fn seconds(&self) -> u64 {
        self.advanced.load(Ordering::Relaxed) + self.start.elapsed().as_secs()
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.seconds())))
    }
}

/// A certificate that can sign.
struct Signer {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    fn root(name: &str) -> Self {
        Self::made(name, None, |_| ())
    }

    fn made(name: &str, parent: Option<&Self>, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = match parent {
            None => params.self_signed(&key).unwrap(),
            Some(parent) => params.signed_by(&key, &parent.issuer).unwrap(),
        };
        Self { der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    /// A leaf for `identity` that is valid for a day from a minute ago, but for what `change` does to it.
    fn sign(&self, identity: &Identity, clock: &Clock, change: impl FnOnce(&mut CertificateParams)) -> Svid {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&identity.to_string())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        valid(&mut params, clock.seconds() - 60, clock.seconds() + DAY.as_secs());
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()).into();
        Svid { identity: identity.clone(), chain: vec![certificate.der().clone()], key }
    }
}

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

fn valid(params: &mut CertificateParams, from: u64, until: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
}

/// What the authority does when it is asked.
#[derive(Clone)]
enum Mood {
    Gives(Duration),
    Refuses(Refusal),
    Ignores,
}

/// Roots and an intermediate, in this memory.
struct Authority {
    clock: Clock,
    signer: Mutex<Arc<Signer>>,
    bundle: watch::Sender<Arc<TrustBundle>>,
    mood: watch::Sender<Mood>,
    /// Answers take this long.
    pause: Duration,
    asked: AtomicUsize,
    asking: AtomicUsize,
    most_asking: AtomicUsize,
}

impl Authority {
    fn new(clock: &Clock, root: &Arc<Signer>) -> Arc<Self> {
        Self::slow(clock, root, Duration::ZERO)
    }

    fn slow(clock: &Clock, root: &Arc<Signer>, pause: Duration) -> Arc<Self> {
        Arc::new(Self {
            clock: clock.clone(),
            signer: Mutex::new(root.clone()),
            bundle: watch::Sender::new(bundle(&[root])),
            mood: watch::Sender::new(Mood::Gives(DAY)),
            pause,
            asked: AtomicUsize::new(0),
            asking: AtomicUsize::new(0),
            most_asking: AtomicUsize::new(0),
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    async fn answer(&self, identity: Identity) -> Result<Svid, Refusal> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let asking = self.asking.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_asking.fetch_max(asking, Ordering::Relaxed);
        let _guard = Asking(&self.asking);
        tokio::time::sleep(self.pause).await;
        let mood = self.mood.borrow().clone();
        match mood {
            Mood::Gives(lifetime) => {
                let signer = self.signer.lock().unwrap().clone();
                let now = self.clock.seconds();
                Ok(signer.sign(&identity, &self.clock, |leaf| valid(leaf, now, now + lifetime.as_secs())))
            }
            Mood::Refuses(refusal) => Err(refusal),
            Mood::Ignores => std::future::pending().await,
        }
    }
}

struct Asking<'a>(&'a AtomicUsize);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CertificateAuthority for Authority {
    fn fetch(&self, identity: &Identity) -> Fetching<'_> {
        Box::pin(self.answer(identity.clone()))
    }

    fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.subscribe()
    }
}

fn bundle(roots: &[&Arc<Signer>]) -> Arc<TrustBundle> {
    Arc::new(TrustBundle { roots: roots.iter().map(|root| root.der.clone()).collect() })
}

fn settings(clock: &Clock) -> Settings {
    let h2 = vec![b"h2".to_vec()];
    Settings { clock: Arc::new(clock.clone()), ..Settings::new(DOMAIN.into(), h2.clone(), h2) }
}

/// The store, running, with certificates for `names`.
async fn identities(authority: &Arc<Authority>, names: &[&str]) -> Arc<Identities> {
    let identities = Identities::with(authority.clone(), settings(&authority.clock));
    let running = identities.clone();
    tokio::spawn(async move { running.run().await });
    let names: BTreeSet<_> = names.iter().map(|name| identity(name)).collect();
    identities.want(&names);
    until(&identities, |store| names.iter().all(|name| store.client(name).is_ok())).await;
    identities
}

/// Waits for a change that makes `is_so` true.
async fn until(identities: &Identities, is_so: impl Fn(&Identities) -> bool) {
    let mut changes = identities.changes();
    let wait = async {
        while !is_so(identities) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(30 * DAY, wait).await.expect("never so");
}

/// Both ends of a connection.
struct Connection {
    client: ClientConnection,
    server: ServerConnection,
}

impl Connection {
    fn new(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Self {
        let name = ServerName::try_from("peer.example").unwrap();
        Self {
            client: ClientConnection::new(client.clone(), name).unwrap(),
            server: ServerConnection::new(server.clone()).unwrap(),
        }
    }

    /// Carries bytes until nobody has any to send, or an end fails: the reasons of the client and of the server.
    fn run(&mut self) -> Result<(), [Option<Reason>; 2]> {
        let mut reasons = [None, None];
        while self.client.wants_write() || self.server.wants_write() {
            let mut wire = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut wire).unwrap();
            }
            if reasons[1].is_none() {
                reasons[1] = take(&mut self.server, &wire);
            }
            wire.clear();
            while self.server.wants_write() {
                self.server.write_tls(&mut wire).unwrap();
            }
            if reasons[0].is_none() {
                reasons[0] = take(&mut self.client, &wire);
            }
        }
        if reasons == [None, None] { Ok(()) } else { Err(reasons) }
    }

    /// How it was made, the same at both ends.
    fn kind(&self) -> HandshakeKind {
        let kind = self.server.handshake_kind().unwrap();
        assert_eq!(self.client.handshake_kind(), Some(kind));
        kind
    }
}

fn take<Side>(
    end: &mut (impl std::ops::DerefMut<Target = rustls::ConnectionCommon<Side>> + Sized),
    mut wire: &[u8],
) -> Option<Reason> {
    while !wire.is_empty() {
        end.read_tls(&mut wire).unwrap();
        if let Err(error) = end.process_new_packets() {
            return Some(handshake_reason(&error));
        }
    }
    None
}

/// A handshake between `caller` and `callee`, and how it went.
fn connect(identities: &Identities, caller: &str, callee: &str) -> Result<HandshakeKind, [Option<Reason>; 2]> {
    let (caller, callee) = (identity(caller), identity(callee));
    let mut connection = Connection::new(&identities.client(&caller).unwrap(), &identities.server(&callee).unwrap());
    connection.run()?;
    assert_eq!(identities.peer(connection.client.peer_certificates().unwrap()), Some(callee));
    assert_eq!(identities.peer(connection.server.peer_certificates().unwrap()), Some(caller));
    Ok(connection.kind())
}
