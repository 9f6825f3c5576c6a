//! A client of `istio.v1.auth.IstioCertificateService`: `mesh-agent ca`, or Istio's istiod.

use std::{
    fs,
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, header};
use rustls::{
    ClientConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tokio::{
    net::TcpStream,
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::{
    Error, certificate, csr,
    grpc::{Channel, Code, Status},
    pem, verify,
    wire::{
        CREATE_CERTIFICATE, IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse, Struct, Value,
    },
};
use crate::{
    identity::{CertificateAuthority, Fetching, Refusal, Svid, TrustBundle},
    kubernetes::{Access, ServiceAddresses},
    model::{Identity, Reason},
};

/// How long a connection may take to be there, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take.
const CALL: Duration = Duration::from_secs(10);
/// How long a failed attempt to connect stands for others.
const FRESH: Duration = Duration::from_millis(500);
/// How often the bundle's file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What is asked for; the authority may give less.
const VALIDITY: i64 = 24 * 3600;

/// How long one of several addresses may take.
const ADDRESS: Duration = Duration::from_secs(2);

/// Where the authority is, and what it and the agent show each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstioConfig {
    /// `--ca-address`: HOST:PORT.
    pub address: String,
    /// `--ca-name`: the name in the authority's certificate, if it is not the host.
    pub name: Option<String>,
    /// `--ca-bundle`: the roots, in PEM. They are the agent's trust bundle.
    pub bundle: PathBuf,
    /// `--ca-token`: the agent's bearer token.
    pub token: Option<PathBuf>,
    /// Which API server knows the address, if it is that of a Service.
    pub service: Option<Access>,
}

/// Addresses, on their way.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>, String>> + Send + 'a>>;

/// Knows where the authority is.
pub trait Resolve: Send + Sync {
    /// Addresses to be tried in this order.
    ///
    /// # Errors
    /// Why they are not known.
    fn resolve(&self) -> Resolving<'_>;
}

/// By name, as the machine resolves it.
struct ByName(String);

impl Resolve for ByName {
    fn resolve(&self) -> Resolving<'_> {
        Box::pin(async {
            let found = tokio::net::lookup_host(&self.0).await.map_err(|error| error.to_string())?;
            Ok(found.collect())
        })
    }
}

impl Resolve for ServiceAddresses {
    fn resolve(&self) -> Resolving<'_> {
        Box::pin(self.find())
    }
}

/// A [`CertificateAuthority`] across the network.
pub struct Istio {
    config: IstioConfig,
    name: ServerName<'static>,
    addresses: Box<dyn Resolve>,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    channel: Mutex<Connection>,
    following: JoinHandle<()>,
}

/// The connection, as far as it is known.
enum Connection {
    None,
    Open(Open),
    /// Those who waited for the same attempt, or come at once after it, get the same answer.
    Failed(Instant, Refusal),
}

/// A connection, and whom it was made trusting.
struct Open {
    channel: Arc<Channel>,
    bundle: Arc<TrustBundle>,
}

impl Istio {
    /// Reads the bundle, and follows it. To be called within a tokio runtime; nothing is connected yet.
    ///
    /// # Errors
    /// The address is none, the bundle or the token cannot be used. The bundle of a Service may come later.
    pub fn new(config: &IstioConfig) -> Result<Self, Error> {
        let name = server_name(config)?;
        if let Some(token) = &config.token {
            fs::File::open(token).map_err(|source| Error::Io { doing: "read", path: token.clone(), source })?;
        }
        let first = match read_bundle(&config.bundle) {
            // In a cluster the authority may start later than the agent, and its bundle be mounted then.
            Err(Error::Io { source, .. }) if config.service.is_some() && source.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(path = %config.bundle.display(), "there is no trust bundle yet");
                TrustBundle::default()
            }
            read => read?,
        };
        let (send, bundle) = watch::channel(Arc::new(first));
        let following = tokio::spawn(follow(config.bundle.clone(), send));
        let service = config.service.clone().zip(config.address.parse().ok());
        let addresses: Box<dyn Resolve> = match service {
            Some((access, service)) => Box::new(ServiceAddresses::new(service, access)),
            None => Box::new(ByName(config.address.clone())),
        };
        let channel = Mutex::new(Connection::None);
        Ok(Self { config: config.clone(), name, addresses, bundle, channel, following })
    }

    async fn issue(&self, identity: &Identity) -> Result<Svid, Refusal> {
        let metadata = self.metadata()?;
        let (key, request) = csr::make(identity).map_err(|error| Refusal {
            reason: Reason::Internal,
            message: format!("cannot make a key: {error}"),
            is_transient: true,
        })?;
        let key = PrivateKeyDer::Pkcs8(key);
        let impersonated = Value { string_value: Some(identity.to_string()) };
        let request = IstioCertificateRequest {
            csr: pem::block("CERTIFICATE REQUEST", &request),
            validity_duration: VALIDITY,
            metadata: Some(Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), impersonated)].into() }),
        };
        let answer = self.call(metadata, &request).await?;
        let untrusted = |why: String| Refusal {
            reason: Reason::CaUntrusted,
            message: format!("what {} issued for {identity} cannot be used: {why}", self.config.address),
            is_transient: true,
        };
        let (chain, announced) = read_answer(&answer).map_err(untrusted)?;
        let bundle = Arc::clone(&self.bundle.borrow());
        verify::svid(&chain, &key, identity, &bundle, SystemTime::now()).map_err(untrusted)?;
        if announced.iter().any(|root| !bundle.roots.contains(root)) {
            let bundle = self.config.bundle.display();
            tracing::warn!("the authority has a root that {bundle} lacks: add it before it is the one that signs");
        }
        Ok(Svid { identity: identity.clone(), chain, key })
    }

    async fn call(
        &self,
        metadata: HeaderMap,
        request: &IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Refusal> {
        let (channel, is_new) = self.channel().await?;
        let answer = self.call_on(&channel, metadata.clone(), request).await;
        match answer {
            // The authority was restarted, perhaps: the connection was good when it was looked at.
            Err(Status { code: Code::Unavailable, reason: None, .. }) if !is_new => {
                self.forget(&channel).await;
                let (channel, _) = self.channel().await?;
                Ok(self.call_on(&channel, metadata, request).await?)
            }
            // Another one may know more: the next call is to whoever answers then.
            Err(status) if status.reason == Some(Reason::CaNotReady) => {
                self.forget(&channel).await;
                Err(status.into())
            }
            answer => Ok(answer?),
        }
    }

    async fn call_on(
        &self,
        channel: &Channel,
        metadata: HeaderMap,
        request: &IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Status> {
        let call = channel.call(CREATE_CERTIFICATE, metadata, request);
        let in_time = timeout(CALL, call.unary::<IstioCertificateResponse>()).await;
        in_time.unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "no answer in time")))
    }

    /// The token, as it is in the file now: it is replaced before it expires.
    fn metadata(&self) -> Result<HeaderMap, Refusal> {
        let mut metadata = HeaderMap::new();
        if let Some(path) = &self.config.token {
            let refuse = |why: String| Refusal {
                reason: Reason::CaUnauthenticated,
                message: format!("--ca-token {}: {why}", path.display()),
                is_transient: true,
            };
            let token = Zeroizing::new(fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?);
            let bearer = Zeroizing::new(format!("Bearer {}", token.trim()));
            let mut bearer =
                HeaderValue::from_str(&bearer).map_err(|_| refuse("it has characters that no token has".to_owned()))?;
            bearer.set_sensitive(true);
            metadata.insert(header::AUTHORIZATION, bearer);
        }
        Ok(metadata)
    }

    /// The connection that is open, or a new one, and whether it is new. One made trusting other roots is not used any
    /// more.
    async fn channel(&self) -> Result<(Arc<Channel>, bool), Refusal> {
        let mut open = self.channel.lock().await;
        let bundle = Arc::clone(&self.bundle.borrow());
        match &*open {
            Connection::Open(open) if !open.channel.is_closed() && Arc::ptr_eq(&open.bundle, &bundle) => {
                return Ok((Arc::clone(&open.channel), false));
            }
            Connection::Failed(at, refusal) if at.elapsed() < FRESH => return Err(refusal.clone()),
            _ => {}
        }
        let dialled = timeout(CONNECT, self.dial(&bundle)).await;
        match dialled.unwrap_or_else(|_| Err(self.unreachable("no connection in time"))) {
            Ok(channel) => {
                let channel = Arc::new(channel);
                *open = Connection::Open(Open { channel: Arc::clone(&channel), bundle });
                Ok((channel, true))
            }
            Err(refusal) => {
                *open = Connection::Failed(Instant::now(), refusal.clone());
                Err(refusal)
            }
        }
    }

    async fn forget(&self, channel: &Arc<Channel>) {
        let mut open = self.channel.lock().await;
        if matches!(&*open, Connection::Open(open) if Arc::ptr_eq(&open.channel, channel)) {
            *open = Connection::None;
        }
    }

    async fn dial(&self, bundle: &TrustBundle) -> Result<Channel, Refusal> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| self.unreachable(&error.to_string()))?;
        let mut config = config.with_root_certificates(verify::store(bundle)).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        if bundle.roots.is_empty() {
            let message = format!("--ca-bundle {}: it is not there yet", self.config.bundle.display());
            return Err(Refusal { reason: Reason::CaUntrusted, message, is_transient: true });
        }
        let addresses = self.addresses.resolve().await.map_err(|why| self.unreachable(&why))?;
        let mut refusal = self.unreachable("it has no address");
        for address in addresses {
            let dialled = timeout(ADDRESS, self.dial_at(address, &connector)).await;
            match dialled.unwrap_or_else(|_| Err(self.unreachable(&format!("no connection to {address} in time")))) {
                Ok(channel) => return Ok(channel),
                Err(why) => refusal = why,
            }
        }
        Err(refusal)
    }

    async fn dial_at(&self, address: SocketAddr, connector: &TlsConnector) -> Result<Channel, Refusal> {
        let stream = TcpStream::connect(address)
            .await
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|error| self.unreachable(&format!("{address}: {error}")))?;
        let stream = connector.connect(self.name.clone(), stream).await.map_err(|error| self.not_connected(&error))?;
        Channel::open(format!("https://{}", self.config.address), stream).await.map_err(Refusal::from)
    }

    fn not_connected(&self, error: &std::io::Error) -> Refusal {
        let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::InvalidCertificate(why)) => Refusal {
                reason: Reason::CaUntrusted,
                message: format!("the certificate of {} is not accepted: {why:?}", self.config.address),
                is_transient: true,
            },
            _ => self.unreachable(&error.to_string()),
        }
    }

    fn unreachable(&self, why: &str) -> Refusal {
        let message = format!("{}: {why}", self.config.address);
        Refusal { reason: Reason::CaUnreachable, message, is_transient: true }
    }
}

impl Drop for Istio {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl CertificateAuthority for Istio {
    fn fetch(&self, identity: &Identity) -> Fetching<'_> {
        let identity = identity.clone();
        Box::pin(async move { self.issue(&identity).await })
    }

    fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.clone()
    }
}

fn server_name(config: &IstioConfig) -> Result<ServerName<'static>, Error> {
    let bad = |flag, why: &str, remedy| Error::Option { flag, why: why.to_owned(), remedy };
    let split = config.address.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    let Some((host, _)) = split else {
        return Err(bad(
            "--ca-address",
            &format!("{:?} is not HOST:PORT", config.address),
            "write it like ca.example:15012",
        ));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (flag, name) = match &config.name {
        Some(name) => ("--ca-name", name.as_str()),
        None => ("--ca-address", host),
    };
    ServerName::try_from(name.to_owned())
        .map_err(|_| bad(flag, &format!("{name:?} is neither a host name nor an IP address"), "give one"))
}

fn read_bundle(path: &Path) -> Result<TrustBundle, Error> {
    let bytes = fs::read(path).map_err(|source| Error::Io { doing: "read", path: path.to_owned(), source })?;
    let unusable = |why| Error::Unusable { path: path.to_owned(), why, remedy: "give the authority's roots in PEM" };
    let bundle = TrustBundle { roots: pem::read_certificates(&bytes).map_err(unusable)? };
    if verify::store(&bundle).len() == bundle.roots.len() {
        Ok(bundle)
    } else {
        Err(unusable("a certificate of it cannot be a root".to_owned()))
    }
}

/// Publishes what is in the bundle's file as it changes.
async fn follow(path: PathBuf, bundle: watch::Sender<Arc<TrustBundle>>) {
    let mut last_error = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        match read_bundle(&path) {
            Ok(read) => {
                last_error.clear();
                let has_changed = bundle.send_if_modified(|held| {
                    let has_changed = **held != read;
                    if has_changed {
                        *held = Arc::new(read);
                    }
                    has_changed
                });
                if has_changed {
                    tracing::info!(path = %path.display(), "the trust bundle has changed");
                }
            }
            Err(error) => {
                let is_absent = matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
                let error = error.to_string();
                // That there is none yet was said at the start.
                let is_known = bundle.borrow().roots.is_empty() && is_absent;
                if error != last_error && !is_known {
                    tracing::warn!(%error, "the trust bundle read last stays in force");
                    last_error = error;
                }
            }
        }
    }
}

type Chain = Vec<CertificateDer<'static>>;

/// The chain without its root, and the roots: the last element of the answer.
fn read_answer(answer: &IstioCertificateResponse) -> Result<(Chain, Chain), String> {
    let mut elements =
        answer.cert_chain.iter().map(|text| pem::read_certificates(text.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let roots = elements.pop().filter(|_| !elements.is_empty()).ok_or("the chain has no root")?;
    let mut chain: Chain = elements.into_iter().flatten().collect();
    chain.retain(|certificate| !certificate::is_self_signed(certificate));
    Ok((chain, roots))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(address: &str, name: Option<&str>) -> IstioConfig {
        let name = name.map(ToOwned::to_owned);
        let bundle = PathBuf::from("/nonexistent/bundle");
        IstioConfig { address: address.to_owned(), name, bundle, token: None, service: None }
    }

    #[test]
    fn the_name_to_expect_is_the_host_unless_given() {
        let name = |address, name| server_name(&config(address, name)).map(|name| name.to_str().into_owned());
        assert_eq!(name("ca.mesh:15012", None).unwrap(), "ca.mesh");
        assert_eq!(name("[::1]:15012", None).unwrap(), "::1");
        assert_eq!(name("10.0.0.1:15012", Some("ca")).unwrap(), "ca");
        for (address, given, flag) in [
            ("ca", None, "--ca-address"),
            (":1", None, "--ca-address"),
            ("ca:x", None, "--ca-address"),
            ("ca:1", Some("a b"), "--ca-name"),
        ] {
            let error = name(address, given).unwrap_err().to_string();
            assert!(error.starts_with(flag), "{error}");
        }
    }

    #[tokio::test]
    async fn files_that_cannot_be_used_are_named() {
        let error = Istio::new(&config("ca:1", None)).err().unwrap().to_string();
        assert!(error.contains("cannot read /nonexistent/bundle"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle.pem");
        fs::write(&bundle, "nothing").unwrap();
        let error = Istio::new(&IstioConfig { bundle, ..config("ca:1", None) }).err().unwrap().to_string();
        assert!(error.contains("bundle.pem") && error.contains("no certificate"), "{error}");
    }
}
