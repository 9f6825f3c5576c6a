//! A client of the SPIFFE Workload API
//! (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md>), which SPIRE serves: identities and
//! bundles come as a stream, and come again when they change.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{net::UnixStream, sync::watch, task::JoinHandle, time::timeout};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{
    Error,
    grpc::{Channel, Code, Status},
    verify,
    wire::{FETCH_X509_SVID, X509Svid, X509SvidRequest, X509SvidResponse},
};
use crate::{
    identity::{CertificateAuthority, Fetching, Refusal, Svid, TrustBundle},
    model::{Identity, Reason},
};

/// How long a fetch waits for the first delivery.
const FIRST: Duration = Duration::from_secs(5);
/// Waits between attempts to connect.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// A [`CertificateAuthority`] that gives what the Workload API delivers.
pub struct Spire {
    endpoint: PathBuf,
    delivered: watch::Receiver<Delivery>,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    streaming: JoinHandle<()>,
}

/// What the stream has brought.
#[derive(Clone, Default)]
enum Delivery {
    /// Nothing yet, or nothing for now, and why.
    #[default]
    None,
    Failed(Status),
    Some(Arc<HashMap<Identity, Delivered>>),
}

/// An identity that was delivered.
struct Delivered {
    chain: Vec<CertificateDer<'static>>,
    key: Zeroizing<Vec<u8>>,
}

impl Spire {
    /// Connects to `endpoint`, e.g. `unix:///run/spire/sockets/agent.sock`, and stays connected. Only identities of
    /// `trust_domain` are taken, and its bundle. To be called within a tokio runtime.
    ///
    /// # Errors
    /// The address is none of a unix socket.
    pub fn new(endpoint: &str, trust_domain: &str) -> Result<Self, Error> {
        let path = socket_path(endpoint)?;
        let (deliver, delivered) = watch::channel(Delivery::None);
        let (trust, bundle) = watch::channel(Arc::default());
        let streaming = tokio::spawn(stream(path.clone(), trust_domain.into(), deliver, trust));
        Ok(Self { endpoint: path, delivered, bundle, streaming })
    }

    async fn give(&self, identity: &Identity) -> Result<Svid, Refusal> {
        let mut delivered = self.delivered.clone();
        let first = timeout(FIRST, delivered.wait_for(|delivery| !matches!(delivery, Delivery::None))).await;
        let socket = self.endpoint.display();
        let delivery = match first {
            Ok(Ok(delivery)) => delivery.clone(),
            _ => Delivery::None,
        };
        match delivery {
            Delivery::Some(identities) => match identities.get(identity) {
                Some(svid) => {
                    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.to_vec()));
                    Ok(Svid { identity: identity.clone(), chain: svid.chain.clone(), key })
                }
                None => Err(not_served(format!("{socket} delivers {}, not {identity}", list(&identities)))),
            },
            Delivery::Failed(status) if status.code == Code::PermissionDenied => {
                Err(not_served(format!("{socket} delivers no identity to this agent: {}", status.message)))
            }
            Delivery::Failed(status) => Err(unreachable(format!("{socket}: {status}"))),
            Delivery::None => Err(unreachable(format!("{socket} has delivered nothing yet"))),
        }
    }
}

impl Drop for Spire {
    fn drop(&mut self) {
        self.streaming.abort();
    }
}

impl CertificateAuthority for Spire {
    fn fetch(&self, identity: &Identity) -> Fetching<'_> {
        let identity = identity.clone();
        Box::pin(async move { self.give(&identity).await })
    }

    fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.clone()
    }
}

fn not_served(message: String) -> Refusal {
    Refusal { reason: Reason::CaNotServed, message, is_transient: false }
}

fn unreachable(message: String) -> Refusal {
    Refusal { reason: Reason::CaUnreachable, message, is_transient: true }
}

fn list(identities: &HashMap<Identity, Delivered>) -> String {
    let mut names: Vec<_> = identities.keys().map(ToString::to_string).collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(3);
    names.truncate(3);
    match (names.is_empty(), more) {
        (true, _) => "nothing that a service account has".to_owned(),
        (false, 0) => names.join(", "),
        (false, _) => format!("{} and {more} more", names.join(", ")),
    }
}

/// As the standard for the endpoint has it: `unix:` and an absolute path.
fn socket_path(endpoint: &str) -> Result<PathBuf, Error> {
    let path = endpoint.strip_prefix("unix:").map(|path| path.strip_prefix("//").unwrap_or(path));
    match path.filter(|path| path.starts_with('/')) {
        Some(path) => Ok(PathBuf::from(path)),
        None => Err(Error::Option {
            flag: "--spiffe-endpoint-socket",
            why: format!("{endpoint:?} is not the address of a unix socket"),
            remedy: "write it like unix:///run/spire/sockets/agent.sock",
        }),
    }
}

/// Keeps a stream open for as long as the agent runs.
async fn stream(
    socket: PathBuf,
    trust_domain: Arc<str>,
    deliver: watch::Sender<Delivery>,
    trust: watch::Sender<Arc<TrustBundle>>,
) {
    let [shortest, longest] = RETRY;
    let mut wait = shortest;
    let mut last = None;
    loop {
        let has_delivered = |wait: &mut Duration| *wait = shortest;
        let status = follow(&socket, &trust_domain, &deliver, &trust, || has_delivered(&mut wait)).await;
        if last.as_ref() != Some(&status) {
            tracing::warn!(socket = %socket.display(), %status, "the SPIFFE Workload API ended its stream");
            last = Some(status.clone());
        }
        // What was delivered stays good until it expires, unless it was taken away.
        deliver.send_if_modified(|delivery| {
            let is_news = !matches!(delivery, Delivery::Some(_)) || status.code == Code::PermissionDenied;
            if is_news {
                *delivery = Delivery::Failed(status);
            }
            is_news
        });
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(longest);
    }
}

/// Follows one stream to its end.
async fn follow(
    socket: &PathBuf,
    trust_domain: &str,
    deliver: &watch::Sender<Delivery>,
    trust: &watch::Sender<Arc<TrustBundle>>,
    mut has_delivered: impl FnMut(),
) -> Status {
    let read = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| Status::new(Code::Unavailable, &format!("cannot connect: {error}")))?;
        let channel = Channel::open("http://localhost".to_owned(), stream).await?;
        let mut metadata = HeaderMap::new();
        // Proof that no browser was tricked into the call.
        metadata.insert("workload.spiffe.io", HeaderValue::from_static("true"));
        let mut responses = channel.call(FETCH_X509_SVID, metadata, &X509SvidRequest {}).start().await?;
        while let Some(response) = responses.next::<X509SvidResponse>().await? {
            let (identities, bundle) = accept(response, trust_domain);
            trust.send_if_modified(|held| {
                let has_changed = **held != bundle;
                if has_changed {
                    *held = Arc::new(bundle);
                }
                has_changed
            });
            deliver.send_replace(Delivery::Some(Arc::new(identities)));
            has_delivered();
        }
        Ok::<_, Status>(())
    };
    match read.await {
        Ok(()) => Status::new(Code::Unavailable, "the stream ended"),
        Err(status) => status,
    }
}

/// What of a delivery is good: identities of service accounts, with what proves them. Roots of another trust domain must
/// not get into the bundle: they would vouch for everybody.
fn accept(response: X509SvidResponse, trust_domain: &str) -> (HashMap<Identity, Delivered>, TrustBundle) {
    let mut bundle = TrustBundle::default();
    let mut identities = HashMap::new();
    for X509Svid { spiffe_id, x509_svid, x509_svid_key, bundle: roots, .. } in response.svids {
        let key = Zeroizing::new(x509_svid_key);
        let read = || {
            let identity: Identity =
                spiffe_id.parse().map_err(|error: crate::model::NotAnIdentity| error.to_string())?;
            if *identity.trust_domain != *trust_domain {
                return Err(format!("it is not of the trust domain {trust_domain}"));
            }
            let own = TrustBundle { roots: split(&roots)? };
            let chain = split(&x509_svid)?;
            let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.as_slice()));
            verify::svid(&chain, &private, &identity, &own, SystemTime::now())?;
            Ok::<_, String>((identity, chain, own))
        };
        match read() {
            Ok((identity, chain, own)) => {
                for root in own.roots {
                    if !bundle.roots.contains(&root) {
                        bundle.roots.push(root);
                    }
                }
                identities.insert(identity, Delivered { chain, key });
            }
            Err(why) => tracing::warn!(spiffe_id, why, "an identity that was delivered is not used"),
        }
    }
    (identities, bundle)
}

/// Certificates in DER, one after the other.
fn split(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|error| format!("not an X.509 certificate: {error}"))?;
        let (certificate, rest) = der.split_at(der.len() - rest.len());
        certificates.push(CertificateDer::from(certificate.to_vec()));
        der = rest;
    }
    if certificates.is_empty() { Err("there is no certificate".to_owned()) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_one_of_a_unix_socket() {
        for good in ["unix:///run/spire/agent.sock", "unix:/run/spire/agent.sock"] {
            assert_eq!(socket_path(good).unwrap(), PathBuf::from("/run/spire/agent.sock"));
        }
        for bad in ["", "/run/spire/agent.sock", "unix:agent.sock", "tcp://127.0.0.1:8081"] {
            let error = socket_path(bad).unwrap_err().to_string();
            assert!(error.contains("--spiffe-endpoint-socket") && error.contains("unix:///run"), "{error}");
        }
    }

    #[test]
    fn malformed_certificates_are_refused() {
        assert!(split(&[]).is_err());
        assert!(split(&[0x30, 0x03, 0, 0, 0]).is_err());
    }
}
