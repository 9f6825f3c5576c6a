//! A client of the API server: from within a pod by its service account, from elsewhere by a kubeconfig.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http::{Request, Response};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use tower_service::Service;

/// What the API server's audit log and its flow control know the agent by.
pub const USER_AGENT: &str = concat!("mesh-agent/", env!("CARGO_PKG_VERSION"));

/// Which API server, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The kubeconfig; without one the service account of this pod, and outside a pod `$KUBECONFIG` or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// A context of it; without one its current context.
    pub context: Option<String>,
}

/// Why there is no client. Causes are in the message: the library repeats them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig {path} cannot be used: {why}; give another one with --kubeconfig")]
    Kubeconfig {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        why: Box<kube::config::KubeconfigError>,
    },
    /// Neither a service account nor a kubeconfig.
    #[error("no API server is known: {0}; run in a pod with a service account, or give --kubeconfig FILE")]
    Nowhere(Box<kube::config::InferConfigError>),
    /// What is known of the server cannot be used.
    #[error("the client of the API server cannot be made: {0}")]
    Unusable(Box<kube::Error>),
}

/// What went wrong, for people: what the server said, or the error with its causes, of which the outermost says little.
pub fn why(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({})", status.message, status.code);
    }
    causes(error)
}

/// The error and what caused it: the outermost alone says little.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl Access {
    /// Makes a client; the server need not answer yet. Service account tokens are read again before they expire, and all that
    /// is read from files, the server's CA among it, after a request to which there was no answer.
    ///
    /// # Errors
    /// No server is known, or what is said about it cannot be used.
    pub async fn client(&self) -> Result<Client, Error> {
        let first = Self::connect(self.config().await?)?;
        let namespace = first.default_namespace().to_owned();
        let renewed = Renewed { access: self.clone(), current: Arc::new(Mutex::new(first)) };
        Ok(Client::new(renewed, namespace))
    }

    /// The same for somebody who tries again himself: a refusal is told at once, where [`Self::client`] asks up to fifteen
    /// times. All that is read from files is read anew.
    ///
    /// # Errors
    /// As [`Self::client`].
    pub async fn watcher(&self) -> Result<Client, Error> {
        let mut config = self.config().await?;
        config.default_retry = false;
        Self::connect(config)
    }

    /// Where the server is.
    ///
    /// # Errors
    /// As [`Self::client`].
    pub async fn server(&self) -> Result<String, Error> {
        let url = self.config().await?.cluster_url.to_string();
        Ok(url.trim_end_matches('/').to_owned())
    }

    fn connect(mut config: Config) -> Result<Client, Error> {
        // Watches are ended by the server after minutes; what cuts silent ones is the watcher's own time limit.
        config.read_timeout = None;
        config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(USER_AGENT)));
        Client::try_from(config).map_err(|error| Error::Unusable(Box::new(error)))
    }

    async fn config(&self) -> Result<Config, Error> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        if let Some(path) = &self.kubeconfig {
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| unusable(path, error))?;
            return Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| unusable(path, error));
        }
        if self.context.is_some() {
            let path = PathBuf::from("of this user");
            return Config::from_kubeconfig(&options).await.map_err(|error| unusable(&path, error));
        }
        Config::infer().await.map_err(|error| Error::Nowhere(Box::new(error)))
    }
}

/// A client that is made anew where the server cannot be spoken to: its certificate may be of another CA by now, which a
/// client does not notice by itself.
#[derive(Clone)]
struct Renewed {
    access: Access,
    current: Arc<Mutex<Client>>,
}

impl Service<Request<Body>> for Renewed {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { access, current } = self.clone();
        Box::pin(async move {
            let client = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let answer = client.send(request).await;
            // Whoever asked asks again; what cannot be read now may be later.
            if answer.is_err()
                && let Ok(config) = access.config().await
                && let Ok(client) = Access::connect(config)
            {
                *current.lock().unwrap_or_else(PoisonError::into_inner) = client;
            }
            answer
        })
    }
}

fn unusable(path: &Path, why: kube::config::KubeconfigError) -> Error {
    Error::Kubeconfig { path: path.to_owned(), why: Box::new(why) }
}
