//! Where the objects come from.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use tokio::sync::{oneshot, watch};

use crate::{
    discovery::{self, Site},
    kubernetes::Access,
    model::Mesh,
};

/// One of the sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `--manifests`: a folder of them.
    Manifests(PathBuf),
    /// `--kubernetes`: an API server.
    Kubernetes(Access),
}

impl Source {
    /// Whether it can be used at all. A folder need not be there yet, and a server need not answer.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let Self::Kubernetes(access) = self else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        runtime.block_on(access.watcher())?;
        Ok(())
    }

    /// Publishes snapshots until nobody listens.
    pub(super) async fn run(self, site: Site, publish: watch::Sender<Arc<Mesh>>) -> anyhow::Result<()> {
        match self {
            Self::Manifests(folder) => discovery::file::Manifests::new(&folder, site).run(publish).await,
            Self::Kubernetes(access) => apart(discovery::kubernetes::Cluster::new(access, site), publish).await?,
        }
        Ok(())
    }
}

/// On a thread of its own: a large cluster takes long to read, and pods wait for the control thread.
async fn apart(cluster: discovery::kubernetes::Cluster, publish: watch::Sender<Arc<Mesh>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the source's runtime")?;
    let (end, ended) = oneshot::channel();
    let run = move || drop(end.send(runtime.block_on(cluster.run(publish))));
    std::thread::Builder::new().name("source".to_owned()).spawn(run).context("the source's thread")?;
    Ok(ended.await.context("the source's thread panicked")??)
}
