//! The snapshot of a folder of manifests, without an agent.

use std::{fmt::Write, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{sync::watch, time};

use crate::{
    discovery::{Site, file::Manifests},
    model::{Mesh, Severity},
};

/// Reading is a matter of milliseconds; a file system that hangs is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads the folder as an agent of that node would.
pub(super) async fn read(
    dir: &Path,
    node: &str,
    trust_domain: &str,
    root_namespace: &str,
) -> anyhow::Result<Arc<Mesh>> {
    if !dir.is_dir() {
        bail!("{} is not a folder", dir.display());
    }
    let (publish, mut found) = watch::channel(Arc::new(Mesh::default()));
    let site = Site {
        node: node.into(),
        trust_domain: trust_domain.into(),
        root_namespace: root_namespace.into(),
        first_generation: 1,
        former: Arc::default(),
    };
    let first = async {
        tokio::select! {
            changed = found.changed() => changed.is_ok(),
            () = Manifests::new(dir, site).run(publish) => false,
        }
    };
    if !time::timeout(PATIENCE, first).await.with_context(|| format!("{} cannot be read in time", dir.display()))? {
        bail!("{} cannot be read", dir.display());
    }
    let mesh = Arc::clone(&found.borrow());
    Ok(mesh)
}

/// What is wrong with the manifests, a line each: an answer that rests on them may be wrong as well.
pub(super) fn problems(mesh: &Mesh) -> String {
    let errors = mesh.problems.iter().filter(|problem| problem.severity == Severity::Error);
    // A pod's network namespace is on its node; here it is not needed.
    let errors = errors.filter(|problem| {
        !matches!(problem.reason, crate::model::Reason::NetnsMissing | crate::model::Reason::NetnsUnnamed)
    });
    errors.fold(String::new(), |mut lines, problem| {
        let _ = writeln!(lines, "mesh-agent: {problem}");
        lines
    })
}
