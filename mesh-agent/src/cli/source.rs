//! The options of `mesh-agent run` that say where objects come from.

use std::path::PathBuf;

use clap::{Args, CommandFactory, error::ErrorKind};

use super::Cli;
use crate::{app::Source, kubernetes::Access};

/// Set in every pod.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Exactly one source.
#[derive(Debug, Args)]
pub(super) struct SourceArgs {
    /// Folder of Kubernetes YAML (Namespace, Pod, Service, EndpointSlice, ServiceAccount, PeerAuthentication, AuthorizationPolicy), watched for changes
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubernetes", "kubeconfig", "context"], env = "MESH_AGENT_MANIFESTS")]
    manifests: Option<PathBuf>,
    /// Follow the API server of a cluster instead [default: in a pod, without --manifests]
    #[arg(long, env = "MESH_AGENT_KUBERNETES")]
    kubernetes: bool,
    /// Where that API server is, and as whom to ask [default: the pod's service account, or $KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE", env = "MESH_AGENT_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current context]
    #[arg(long, value_name = "NAME", env = "MESH_AGENT_CONTEXT")]
    context: Option<String>,
}

impl SourceArgs {
    /// What they say.
    pub(super) fn choice(self) -> Result<Source, clap::Error> {
        self.choice_in(std::env::var_os(IN_CLUSTER).is_some())
    }

    fn choice_in(self, in_cluster: bool) -> Result<Source, clap::Error> {
        let Self { manifests, kubernetes, kubeconfig, context } = self;
        match manifests {
            Some(folder) => Ok(Source::Manifests(folder)),
            None if kubernetes || kubeconfig.is_some() || context.is_some() || in_cluster => {
                Ok(Source::Kubernetes(Access { kubeconfig, context }))
            }
            None => {
                let message = "no source of objects: give --manifests DIR, or --kubernetes to follow an API server \
                               (the default in a pod of a cluster)";
                Err(Cli::command().error(ErrorKind::MissingRequiredArgument, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        source: SourceArgs,
    }

    fn choice(in_cluster: bool, line: &[&str]) -> Result<Source, String> {
        let line = std::iter::once(&"x").chain(line);
        let parsed = Line::try_parse_from(line).and_then(|line| line.source.choice_in(in_cluster));
        parsed.map_err(|error| error.to_string())
    }

    #[test]
    fn there_is_one_source_and_in_a_cluster_it_is_the_cluster() {
        let cluster = |kubeconfig: Option<&str>, context: Option<&str>| {
            let (kubeconfig, context) = (kubeconfig.map(Into::into), context.map(Into::into));
            Ok(Source::Kubernetes(Access { kubeconfig, context }))
        };
        let folder = Ok(Source::Manifests("/m".into()));
        assert_eq!(choice(true, &["--manifests", "/m"]), folder);
        assert_eq!(choice(false, &["--manifests", "/m"]), folder);
        assert_eq!(choice(true, &[]), cluster(None, None));
        assert_eq!(choice(false, &["--kubernetes"]), cluster(None, None));
        assert_eq!(choice(false, &["--kubeconfig", "/k", "--context", "c"]), cluster(Some("/k"), Some("c")));
        let none = choice(false, &[]).unwrap_err();
        assert!(none.contains("--manifests DIR") && none.contains("--kubernetes"), "{none}");
        for other in [&["--kubernetes"][..], &["--kubeconfig", "/k"], &["--context", "c"]] {
            let both = choice(false, &[&["--manifests", "/m"], other].concat()).unwrap_err();
            assert!(both.contains("--manifests") && both.contains(other[0]), "{both}");
        }
    }
}
