//! Who calls, and what a caller may have.

use std::{
    collections::BTreeMap,
    fmt, fs, future,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{
    ca::{Error, certificate},
    identity::Refusal,
    model::{Identity, Mesh, Reason},
};

/// Shortest token, in characters: what is shorter can be guessed.
const MIN_TOKEN: usize = 16;

/// What a caller shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credentials<'a> {
    /// The token after `Bearer` in the header `authorization`.
    pub bearer: Option<&'a str>,
    /// Its certificate, which was verified against the trust bundle.
    pub certificate: Option<&'a CertificateDer<'a>>,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The agent of a node, for the pods of the node.
    Node(Arc<str>),
    /// A workload, for itself.
    Workload(Identity),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Workload(identity) => write!(f, "{identity}"),
        }
    }
}

/// The answer to who somebody is, on its way.
pub type Authenticating<'a> = Pin<Box<dyn Future<Output = Result<Caller, Refusal>> + Send + 'a>>;

/// Finds out who calls.
pub trait Authenticator: Send + Sync {
    /// Whose credentials these are.
    ///
    /// # Errors
    /// [`Reason::CaUnauthenticated`]; others if it cannot be found out now.
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> Authenticating<'a>;
}

/// The answer to whether something runs, on its way.
pub type Looking<'a> = Pin<Box<dyn Future<Output = Result<bool, Refusal>> + Send + 'a>>;

/// Knows what runs where.
pub trait PodDirectory: Send + Sync {
    /// Whether a pod of this service account runs on the node; on any, where none is named.
    ///
    /// # Errors
    /// It is not known now.
    fn runs<'a>(&'a self, node: Option<&'a str>, identity: &'a Identity) -> Looking<'a>;
}

/// The pods of a snapshot. One that names no node counts for none: nobody can vouch for it.
impl PodDirectory for watch::Receiver<Arc<Mesh>> {
    fn runs<'a>(&'a self, node: Option<&'a str>, identity: &'a Identity) -> Looking<'a> {
        let mesh = Arc::clone(&self.borrow());
        let runs = mesh.pods_of(&identity.namespace).any(|workload| {
            *workload.identity == *identity
                && workload.node.as_deref().is_some_and(|runs_on| node.is_none_or(|node| node == runs_on))
        });
        Box::pin(future::ready(Ok(runs)))
    }
}

/// Whose certificate a caller asks for, and whether it may have it.
///
/// # Errors
/// [`Reason::CaBadRequest`], [`Reason::CaWrongIdentity`], [`Reason::CaNotOnNode`]; others if it is not known now.
pub(super) async fn authorize(
    caller: &Caller,
    asked: Option<&str>,
    pods: &dyn PodDirectory,
) -> Result<Identity, Refusal> {
    let refuse = |reason, message| Err(Refusal { reason, message, is_transient: reason == Reason::CaNotOnNode });
    let asked = match asked.map(str::parse::<Identity>) {
        Some(Ok(identity)) => Some(identity),
        Some(Err(error)) => return refuse(Reason::CaBadRequest, error.to_string()),
        None => None,
    };
    match caller {
        Caller::Node(node) => {
            let Some(identity) = asked else {
                return refuse(
                    Reason::CaBadRequest,
                    "the metadata does not say whose certificate is asked for".to_owned(),
                );
            };
            if pods.runs(Some(node), &identity).await? {
                return Ok(identity);
            }
            refuse(Reason::CaNotOnNode, format!("node {node} runs no pod of {identity}"))
        }
        Caller::Workload(own) => {
            if let Some(other) = asked.filter(|asked| asked != own) {
                return refuse(Reason::CaWrongIdentity, format!("{own} asks for a certificate of {other}"));
            }
            if pods.runs(None, own).await? {
                return Ok(own.clone());
            }
            refuse(Reason::CaNotOnNode, format!("no node runs a pod of {own}"))
        }
    }
}

/// Bearer tokens of nodes, from a file with lines `NODE TOKEN`; and workloads by their certificates.
pub struct Tokens {
    path: PathBuf,
    read: Mutex<ReadTokens>,
}

struct ReadTokens {
    /// Changes when the file does.
    version: Option<(SystemTime, u64)>,
    nodes: Arc<NodesByToken>,
}

type NodesByToken = Vec<(Zeroizing<String>, Arc<str>)>;

impl Tokens {
    /// Reads the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let read = ReadTokens { version: version(path), nodes: Arc::new(read(path)?) };
        Ok(Self { path: path.to_owned(), read: Mutex::new(read) })
    }

    /// What is in the file now; what was in it last, while it cannot be used.
    fn current(&self) -> Arc<NodesByToken> {
        let mut held = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let version = version(&self.path);
        if version != held.version {
            held.version = version;
            match read(&self.path) {
                Ok(nodes) => held.nodes = Arc::new(nodes),
                Err(error) => tracing::warn!(%error, "the tokens read last stay in force"),
            }
        }
        Arc::clone(&held.nodes)
    }

    fn node(&self, token: &str) -> Option<Arc<str>> {
        // All are compared, and all of each: the time it takes says nothing.
        self.current()
            .iter()
            .fold(None, |found, (known, node)| if is_same(known, token) { Some(Arc::clone(node)) } else { found })
    }
}

impl Authenticator for Tokens {
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> Authenticating<'a> {
        let unknown = |message: &str| Refusal {
            reason: Reason::CaUnauthenticated,
            message: message.to_owned(),
            is_transient: true,
        };
        let caller = match credentials {
            Credentials { bearer: Some(token), .. } => {
                self.node(token).map(Caller::Node).ok_or_else(|| unknown("the token is not known"))
            }
            Credentials { certificate: Some(certificate), .. } => workload(certificate, SystemTime::now())
                .map(Caller::Workload)
                .map_err(|why| unknown(&format!("the client certificate: {why}"))),
            Credentials { .. } => Err(unknown("there is neither a bearer token nor a client certificate")),
        };
        Box::pin(future::ready(caller))
    }
}

/// Whose certificate it is. It was verified when the connection was made, which may be long ago.
pub(in crate::ca) fn workload(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<Identity, String> {
    if certificate::validity_of(&certificate::read(certificate)?).holds(now) {
        certificate::identity_of(certificate)
    } else {
        Err("it has expired".to_owned())
    }
}

fn version(path: &Path) -> Option<(SystemTime, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.modified().ok()?, file.len()))
}

fn read(path: &Path) -> Result<NodesByToken, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Io { doing: "read", path: path.to_owned(), source })?;
    parse(&Zeroizing::new(text)).map_err(|why| Error::Unusable {
        path: path.to_owned(),
        why,
        remedy: "write a line NODE TOKEN for each node; # begins a comment",
    })
}

fn parse(text: &str) -> Result<NodesByToken, String> {
    let mut nodes = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index + 1;
        let mut parts = line.split_whitespace();
        let (Some(node), Some(token), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(format!("line {number} is not NODE TOKEN"));
        };
        if token.len() < MIN_TOKEN {
            return Err(format!("line {number}: a token has at least {MIN_TOKEN} characters"));
        }
        if nodes.insert(token, node).is_some() {
            return Err(format!("line {number}: the token is that of another line too"));
        }
    }
    Ok(nodes.into_iter().map(|(token, node)| (Zeroizing::new(token.to_owned()), node.into())).collect())
}

/// In a time that depends on the lengths only.
fn is_same(one: &str, other: &str) -> bool {
    let differences = one.bytes().zip(other.bytes()).fold(0, |differences, (a, b)| differences | (a ^ b));
    one.len() == other.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        ca::{Authority, Lifetimes, csr},
        model::{ObjectName, Workload},
    };

    const TOKEN: &str = "0123456789abcdef";

    fn identity(account: &str) -> Identity {
        format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
    }

    fn pods() -> watch::Receiver<Arc<Mesh>> {
        let mut mesh = Mesh::default();
        for (name, account, node) in
            [("cart-1", "cart", Some("n1")), ("web-1", "web", Some("n2")), ("nowhere", "lost", None)]
        {
            let mut workload = Workload::new(ObjectName::new("shop", name), Arc::new(identity(account)));
            workload.node = node.map(Into::into);
            mesh.put(Arc::new(workload));
        }
        watch::channel(Arc::new(mesh)).1
    }

    #[tokio::test]
    async fn a_node_gets_the_identities_of_its_own_pods() {
        let node = Caller::Node("n1".into());
        let asks = async |asked: Option<&str>| authorize(&node, asked, &pods()).await.map_err(|refusal| refusal.reason);
        assert_eq!(asks(Some(&identity("cart").to_string())).await, Ok(identity("cart")));
        assert_eq!(asks(Some(&identity("web").to_string())).await, Err(Reason::CaNotOnNode));
        assert_eq!(asks(Some(&identity("lost").to_string())).await, Err(Reason::CaNotOnNode));
        assert_eq!(asks(Some("cart")).await, Err(Reason::CaBadRequest));
        assert_eq!(asks(None).await, Err(Reason::CaBadRequest));
        assert_eq!(asks(Some("spiffe://elsewhere/ns/shop/sa/cart")).await, Err(Reason::CaNotOnNode));
    }

    #[tokio::test]
    async fn a_workload_gets_its_own_identity_while_it_has_a_pod() {
        let asks = async |account, asked: Option<&str>| {
            let caller = Caller::Workload(identity(account));
            authorize(&caller, asked, &pods()).await.map_err(|refusal| refusal.reason)
        };
        assert_eq!(asks("web", None).await, Ok(identity("web")));
        assert_eq!(asks("web", Some(&identity("web").to_string())).await, Ok(identity("web")));
        assert_eq!(asks("web", Some(&identity("cart").to_string())).await, Err(Reason::CaWrongIdentity));
        assert_eq!(asks("gone", None).await, Err(Reason::CaNotOnNode));
    }

    #[tokio::test]
    async fn tokens_are_read_again_when_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        fs::write(&path, format!("# nodes\nn1 {TOKEN}\n\nn2   {TOKEN}2\n")).unwrap();
        let tokens = Tokens::open(&path).unwrap();
        let ask = async |token: &str| tokens.authenticate(Credentials { bearer: Some(token), certificate: None }).await;
        assert_eq!(ask(TOKEN).await, Ok(Caller::Node("n1".into())));
        assert_eq!(ask(&format!("{TOKEN}2")).await, Ok(Caller::Node("n2".into())));
        for wrong in ["", &TOKEN[1..], &format!("{TOKEN}3"), &TOKEN.to_uppercase()] {
            assert_eq!(ask(wrong).await.unwrap_err().reason, Reason::CaUnauthenticated, "{wrong}");
        }
        fs::write(&path, format!("n3 {TOKEN}33")).unwrap();
        assert_eq!(ask(&format!("{TOKEN}33")).await, Ok(Caller::Node("n3".into())));
        assert_eq!(ask(TOKEN).await.unwrap_err().reason, Reason::CaUnauthenticated, "it was taken back");
        fs::write(&path, "n3").unwrap();
        assert_eq!(ask(&format!("{TOKEN}33")).await, Ok(Caller::Node("n3".into())), "the last good ones stay");
        assert_eq!(tokens.authenticate(Credentials::default()).await.unwrap_err().reason, Reason::CaUnauthenticated);
    }

    #[test]
    fn a_certificate_counts_while_it_is_valid_however_old_the_connection() {
        let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
        let authority = Authority::open(folder.path(), "cluster.local", Lifetimes::default(), now).unwrap();
        let (_key, request) = csr::make(&identity("cart")).unwrap();
        let chain = authority.sign(&request, &identity("cart"), None, now).unwrap().chain;
        assert_eq!(workload(&chain[0], now), Ok(identity("cart")));
        assert!(workload(&chain[0], now + Duration::from_hours(25)).unwrap_err().contains("expired"));
        assert!(workload(&chain[1], now).unwrap_err().contains("not spiffe://"), "the authority is no workload");
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, what) in [
            (format!("\nn1 {TOKEN} more"), "line 2"),
            ("n1 short".to_owned(), "at least 16"),
            (format!("n1 {TOKEN}\nn2 {TOKEN}"), "line 2: the token is that of another line"),
        ] {
            let error = parse(&text).err().unwrap();
            assert!(error.contains(what), "{error}");
        }
    }
}
