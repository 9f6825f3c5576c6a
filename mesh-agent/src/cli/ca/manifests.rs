//! Nodes and pods as files say.

use std::{
    collections::BTreeSet,
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::Context;
use tokio::sync::watch;

use super::{Args, NAMESPACE, lifetimes, limits, listen, names};
use crate::{
    ca::{
        Authority,
        server::{Server, Tokens},
    },
    discovery,
    model::{Mesh, Reason},
};

/// Folder of the root unless another is given.
const ROOT: &str = "/var/lib/mesh-agent/ca";

pub(super) async fn serve(
    args: &Args,
    folder: &Path,
    tokens: &Path,
    end: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let now = SystemTime::now();
    let tokens = Tokens::open(tokens).context("--tokens")?;
    let root = args.root.clone().unwrap_or_else(|| PathBuf::from(ROOT));
    let authority = Authority::open(&root, &args.trust_domain, lifetimes(args), now).context("--root")?;
    if args.new_root {
        authority.replace_root(now).context("--new-root")?;
    }
    let (publish, mesh) = watch::channel(Arc::new(Mesh::default()));
    let site = discovery::Site {
        node: "".into(),
        trust_domain: args.trust_domain.as_str().into(),
        // Policies are none of the authority's business.
        root_namespace: "".into(),
        first_generation: 1,
        former: Arc::default(),
    };
    let mut source = tokio::spawn(discovery::file::Manifests::new(folder, site).run(publish));
    let mut problems = tokio::spawn(tell_problems(mesh.clone()));
    let server = Server::new(
        Arc::new(authority),
        &names(args, NAMESPACE, &[])?,
        Box::new(tokens),
        Box::new(mesh),
        limits(args),
    )?;
    let broken = async move {
        tokio::select! {
            end = &mut source => anyhow::anyhow!("reading the manifests ended: {end:?}"),
            end = &mut problems => anyhow::anyhow!("telling the problems of manifests ended: {end:?}"),
        }
    };
    listen(args, server, end, broken).await
}

/// Logs what is wrong with the manifests. Network namespaces are the business of the nodes.
async fn tell_problems(mut mesh: watch::Receiver<Arc<Mesh>>) {
    let mut told = BTreeSet::new();
    while mesh.changed().await.is_ok() {
        let current = Arc::clone(&mesh.borrow_and_update());
        let problems = current.problems.iter().filter(|problem| {
            !matches!(problem.reason, Reason::NetnsMissing | Reason::NetnsUnnamed | Reason::HostNetwork)
        });
        let now: BTreeSet<String> = problems.map(ToString::to_string).collect();
        for problem in now.difference(&told) {
            tracing::warn!("{problem}");
        }
        told = now;
    }
}
