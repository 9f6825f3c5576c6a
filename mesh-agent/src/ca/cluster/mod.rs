//! The authority in a cluster: who calls is what the API server says of a token, what runs where is what it says of pods,
//! the root is in a Secret, and whom to trust in a ConfigMap.

mod bundle;
mod keeper;
mod pods;
mod review;
mod secret;

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use kube::Client;

pub use self::{keeper::Keeper, pods::Pods, review::Reviews};
use super::{Authority, Error, Lifetimes};
use crate::kubernetes::Access;

/// Where the root comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// A folder, which may be a mounted Secret.
    Folder(PathBuf),
    /// A Secret of the authority's namespace; made if there is none.
    Secret(String),
}

/// What the authority is told about its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What tokens have to be made for.
    pub audience: String,
    /// Namespace and name of the service account of agents.
    pub agent: (String, String),
    /// Where the root is.
    pub root: Root,
    /// The ConfigMap of the trust bundle, in the authority's namespace.
    pub bundle: String,
    /// Of all identities.
    pub trust_domain: String,
    /// How long things are valid.
    pub lifetimes: Lifetimes,
    /// Begin to replace the root.
    pub new_root: bool,
}

/// A cluster, before it was asked anything.
pub struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    /// Makes a client. Without a namespace it is that of the service account, or of the kubeconfig.
    ///
    /// # Errors
    /// No API server is known.
    pub async fn new(access: &Access, namespace: Option<&str>) -> Result<Self, Error> {
        let client = access.client().await?;
        let namespace = namespace.map_or_else(|| client.default_namespace().to_owned(), ToOwned::to_owned);
        Ok(Self { client, namespace })
    }

    /// The authority's own.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pods, once `Pods::run` follows them.
    pub fn pods(&self, options: &Options) -> Arc<Pods> {
        Arc::new(Pods::new(&options.trust_domain))
    }

    /// Follows all pods until the end of time.
    pub async fn follow(&self, pods: Arc<Pods>) {
        pods::follow(self.client.clone(), &pods).await;
    }

    /// Whoever asks the API server about tokens.
    pub fn reviews(&self, options: &Options, pods: Arc<Pods>) -> Reviews {
        Reviews::new(self.client.clone(), options, pods)
    }

    /// Reads the root, or makes it, and publishes the trust bundle; waits for the API server until it answers.
    ///
    /// # Errors
    /// What there is cannot be used.
    pub async fn open(&self, options: &Options) -> Result<(Arc<Authority>, Keeper), Error> {
        let mut keeper = Keeper::new(&self.client, &self.namespace, options);
        let material = keeper.first().await?;
        let authority = Authority::of(material, &options.trust_domain, options.lifetimes, SystemTime::now())?;
        Ok((Arc::new(authority), keeper))
    }
}
