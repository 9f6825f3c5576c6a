//! The server as tests hold it: start, stop, what is in it, and what goes wrong.

use std::{
    convert::Infallible,
    fmt, io,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Cut, Decided, Fault, Received, Shared, User, event,
    handle::handle,
    kinds::Kind,
    rbac::{self, MASTERS},
    settle,
    store::Key,
    time,
    tls::Tls,
    token, uid, yaml,
};

/// How the server behaves where real ones differ or take long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Names in its certificate besides the usual ones.
    pub names: Vec<String>,
    /// Time between bookmarks.
    pub bookmarks: Duration,
    /// How long a watch lasts that does not say it.
    pub watch_timeout: Duration,
    /// For how long a successful token verification is remembered.
    pub token_cache: Duration,
    /// Time from `Established` until the paths of a custom resource answer.
    pub definition_delay: Duration,
    /// Whether lists come as streams. An old etcd does not tell how far it is: then they break off, within an answer of 200.
    pub streams: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            names: Vec::new(),
            bookmarks: Duration::from_mins(1),
            watch_timeout: Duration::from_mins(45),
            token_cache: Duration::from_secs(10),
            definition_delay: Duration::from_millis(250),
            streams: true,
        }
    }
}

/// A running server, on threads of its own in the network namespace of the thread that started it.
pub struct ApiServer {
    shared: Arc<Shared>,
    tls: Tls,
    admin: String,
    address: SocketAddr,
    listening: Mutex<Option<Listening>>,
    runtime: Option<Runtime>,
}

struct Listening {
    end: oneshot::Sender<()>,
    /// Ends when the task has.
    ended: mpsc::Receiver<Infallible>,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ApiServer({})", self.url())
    }
}

impl ApiServer {
    /// Starts one with the namespaces and roles that every cluster has.
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    /// As [`Self::start`].
    pub fn with(options: Options) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("test-api")
            .enable_all()
            .build()
            .expect("a runtime");
        let tls = Tls::new(&options.names);
        let listener = TcpListener::bind(options.listen).expect("the address of the API server is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::new(options, address, runtime.handle().clone()));
        let admin = format!("admin-{}", uid());
        let server =
            Self { shared, tls, admin: admin.clone(), address, listening: Mutex::default(), runtime: Some(runtime) };
        let groups = vec![MASTERS.to_owned(), "system:authenticated".to_owned()];
        server.add_user(&admin, User { name: "kubernetes-admin".to_owned(), groups, ..User::default() });
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            server.put(json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            }));
        }
        for object in rbac::bootstrap() {
            server.put(object);
        }
        server.listen(listener);
        server
    }

    fn listen(&self, listener: TcpListener) {
        listener.set_nonblocking(true).expect("a socket that does not block");
        let (ends, ended) = mpsc::channel();
        let acceptor = TlsAcceptor::from(self.tls.config());
        let (end, stopped) = oneshot::channel();
        let accepting = accept(listener, acceptor, Arc::clone(&self.shared), stopped);
        self.shared.runtime.spawn(async move {
            accepting.await;
            drop::<mpsc::Sender<Infallible>>(ends);
        });
        *self.listening.lock().unwrap_or_else(PoisonError::into_inner) = Some(Listening { end, ended });
    }

    /// Closes the listener and all connections. What is stored stays.
    pub fn stop(&self) {
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listening) = listening {
            let _ = listening.end.send(());
            // An error is the end of the sender, which the task holds until all connections are gone.
            let _ = listening.ended.recv();
        }
    }

    /// Listens again, at the same address.
    pub fn resume(&self) {
        self.stop();
        self.listen(TcpListener::bind(self.address).expect("the address is ours still"));
    }

    /// Address of the listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The CA of the server's certificate, as PEM.
    pub fn authority(&self) -> String {
        self.tls.authority()
    }

    /// Token of a user who may do everything.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// A kubeconfig for whoever has this token; empty is a client without credentials.
    pub fn kubeconfig(&self, token: &str) -> String {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let user = if token.is_empty() { json!({}) } else { json!({"token": token}) };
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": self.url(), "certificate-authority-data": STANDARD.encode(self.authority()),
            }}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        })
        .to_string()
    }

    /// Writes a kubeconfig whose token is read from `token`, as a projected token is: it can be rotated.
    pub fn write_kubeconfig(&self, path: &Path, token: &Path) -> io::Result<()> {
        let mut config: Value = serde_json::from_str(&self.kubeconfig(""))?;
        let user = config.pointer_mut("/users/0/user").expect("made above");
        *user = json!({"tokenFile": token});
        std::fs::write(path, config.to_string())
    }

    /// The same with the CA read from `authority`, too.
    pub fn write_kubeconfig_with(&self, path: &Path, token: &Path, authority: &Path) -> io::Result<()> {
        self.write_kubeconfig(path, token)?;
        std::fs::write(authority, self.authority())?;
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        let cluster = config.pointer_mut("/clusters/0/cluster").expect("made above");
        *cluster = json!({"server": self.url(), "certificate-authority": authority});
        std::fs::write(path, config.to_string())
    }

    /// Lets a static token stand for a user.
    pub fn add_user(&self, token: &str, user: User) {
        self.shared.state().users.insert(token.to_owned(), user);
    }

    /// Writes an object as the kubelet or a controller would: all of it, status too, under the next version. uid and
    /// creationTimestamp are made where they are missing. Returns what is stored.
    ///
    /// # Panics
    /// When its kind is not served.
    pub fn put(&self, mut object: Value) -> Value {
        let mut state = self.shared.state();
        let kind = known(state.find_kind(&object), &object);
        if object["metadata"]["uid"].is_null() {
            let key = Key::new(text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
            let before = state.store.get(&kind.collection, &key).map(|entry| entry.value()["metadata"].clone());
            let kept = |name: &str| before.as_ref().map(|metadata| metadata[name].clone());
            let created = kept("creationTimestamp").unwrap_or_else(|| time::now().into());
            object["metadata"]["uid"] = kept("uid").unwrap_or_else(|| uid().into());
            object["metadata"]["creationTimestamp"] = created;
        }
        state.store.put(&kind, &mut object);
        super::crd::stored(&mut state, &kind, &object).expect("a definition that is understood");
        drop(state);
        settle(&self.shared);
        object
    }

    /// As [`Self::put`], under the version that the object carries, or the current one. For recorded objects.
    pub fn load(&self, object: &Value) {
        let mut state = self.shared.state();
        let kind = known(state.find_kind(object), object);
        state.store.load(&kind, object);
        super::crd::stored(&mut state, &kind, object).expect("a definition that is understood");
        drop(state);
        settle(&self.shared);
    }

    /// Writes all objects of a YAML text with as many documents as it has.
    pub fn put_yaml(&self, text: &str) {
        for document in text.split("\n---").filter(|document| !document.trim().is_empty()) {
            let object = yaml(document.as_bytes()).expect("YAML");
            if !object.is_null() {
                self.put(object);
            }
        }
    }

    /// Where `kubectl port-forward` to that port of the pod leads; `None`: nobody listens there.
    pub fn forward(&self, namespace: &str, pod: &str, port: u16, address: Option<SocketAddr>) {
        self.shared.forwards.set(namespace, pod, port, address);
    }

    /// Removes an object at once, whatever holds it. True: there was one.
    pub fn remove(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> bool {
        let mut state = self.shared.state();
        let object = json!({"apiVersion": api_version, "kind": kind});
        let kind = known(state.find_kind(&object), &object);
        let Some(removed) = state.store.remove(&kind, &Key::new(namespace, name)) else { return false };
        super::crd::removed(&mut state, &kind, &removed.value());
        true
    }

    /// An object, if it is there.
    pub fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.shared.state();
        let object = json!({"apiVersion": api_version, "kind": kind});
        let kind = known(state.find_kind(&object), &object);
        let value = state.store.get(&kind.collection, &Key::new(namespace, name))?.value();
        Some(if kind.is_view() { event::from_core(value) } else { value })
    }

    /// Whether a kind is served: some time after its definition has been put.
    pub fn serves(&self, api_version: &str, kind: &str) -> bool {
        self.shared.state().find_kind(&json!({"apiVersion": api_version, "kind": kind})).is_some()
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.shared.state().store.version()
    }

    /// Moves the version on, as changes of other objects do.
    pub fn advance_to(&self, version: u64) {
        self.shared.state().store.advance_to(version);
    }

    /// Number of objects, and of bytes of their text.
    pub fn size(&self) -> (usize, usize) {
        self.shared.state().store.size()
    }

    /// Forgets the log: watches and lists of older versions get 410.
    pub fn compact(&self) {
        self.shared.state().store.compact();
    }

    /// Ends all watches that are open.
    pub fn cut_watches(&self, how: Cut) {
        self.shared.cuts.send_replace(how);
    }

    /// New connections meet another certificate of the same CA.
    pub fn rotate_certificate(&self) {
        self.tls.rotate();
    }

    /// The same, of another CA: who knows the former one does not know the server any more.
    pub fn rotate_authority(&self) {
        self.tls.rotate_authority();
    }

    /// Adds a fault.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.shared.faults.clear();
    }

    /// All requests since the start, or since they were taken.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.requests.all()
    }

    /// As [`Self::requests`], which begin anew.
    pub fn take_requests(&self) -> Vec<Received> {
        self.shared.requests.take()
    }

    /// What a user has wanted to do so far, each once.
    pub fn decided(&self, user: &str) -> Vec<Decided> {
        self.shared.state().decided.iter().filter(|decided| decided.user == user).cloned().collect()
    }

    /// A token for a service account, as the kubelet would get it for a pod of it, or one that is bound to nothing.
    ///
    /// # Panics
    /// When one of them is not there.
    pub fn token(
        &self,
        namespace: &str,
        account: &str,
        pod: Option<&str>,
        audiences: &[&str],
        lasts: Duration,
    ) -> String {
        let state = self.shared.state();
        let get = |collection: &str, name: &str| {
            let entry = state.store.get(collection, &Key::new(namespace, name));
            entry.unwrap_or_else(|| panic!("no {collection} {namespace}/{name}")).value()
        };
        let pod = pod.map(|pod| get("pods.", pod));
        let audiences: Vec<_> = if audiences.is_empty() { vec![token::ISSUER] } else { audiences.to_vec() };
        let audiences: Vec<_> = audiences.into_iter().map(str::to_owned).collect();
        let lasts = i64::try_from(lasts.as_secs()).unwrap_or(i64::MAX / 2);
        let claims = token::claims(&state, &get("serviceaccounts.", account), pod.as_ref(), &audiences, lasts);
        state.signer.sign(&claims)
    }

    /// Signs any claims with the server's key.
    pub fn sign(&self, claims: &Value) -> String {
        self.shared.state().signer.sign(claims)
    }

    /// Forgets successful verifications of tokens.
    pub fn forget_tokens(&self) {
        self.shared.state().tokens.clear();
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn known(kind: Option<Arc<Kind>>, object: &Value) -> Arc<Kind> {
    kind.unwrap_or_else(|| panic!("{} {} is not served", object["apiVersion"], object["kind"]))
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Accepts connections until it is stopped; ends when the last of them has.
async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                let _ = stream.set_nodelay(true);
                let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| handle(Arc::clone(&shared), request));
                    // Clients come and go; what they got is what counts.
                    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
            Some(_) = connections.join_next() => {}
            _ = &mut stopped => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}
