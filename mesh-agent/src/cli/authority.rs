//! The options of `mesh-agent run` that say which certificate authority it has.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;

use super::duration;
use crate::{
    ca::{Choice, IstioConfig},
    kubernetes::{Access, ServicePort},
};

/// The shortest life of a certificate: times in it are whole seconds, and the clocks of two nodes differ by some.
const SHORTEST_LIFE: Duration = Duration::from_secs(10);

/// Folder within the run folder that the embedded authority has its root in.
pub(super) const FOLDER: &str = "ca";

/// At most one of the three kinds.
#[derive(Debug, Args)]
pub(super) struct AuthorityArgs {
    /// Certificate authority to ask: `mesh-agent ca`, or Istio's; where the Service NAME.NAMESPACE.svc is, the API server
    /// is asked [default: the agent is its own]
    #[arg(long, value_name = "HOST:PORT", requires = "ca_bundle", env = "MESH_AGENT_CA_ADDRESS")]
    ca_address: Option<String>,
    /// Roots of that authority in PEM; followed when it changes
    #[arg(long, value_name = "FILE", requires = "ca_address", env = "MESH_AGENT_CA_BUNDLE")]
    ca_bundle: Option<PathBuf>,
    /// This node's bearer token; read anew for every call
    #[arg(long, value_name = "FILE", requires = "ca_address", env = "MESH_AGENT_CA_TOKEN")]
    ca_token: Option<PathBuf>,
    /// Name in the authority's certificate [default: the host of --ca-address]
    #[arg(long, value_name = "NAME", requires = "ca_address", env = "MESH_AGENT_CA_SERVER_NAME")]
    ca_name: Option<String>,
    /// Folder of the agent's own authority; agents that share it trust one another [default: a folder in --run-dir]
    #[arg(long, value_name = "DIR", conflicts_with = "ca_address", env = "MESH_AGENT_CA_ROOT")]
    ca_root: Option<PathBuf>,
    /// Life of a workload's certificate that the agent's own authority issues, at least 10s; the next one takes over at half
    /// of it
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lifetime, env = "MESH_AGENT_CERTIFICATE_LIFETIME")]
    certificate_lifetime: Duration,
    /// Take certificates from the SPIFFE Workload API (SPIRE) at this address, e.g. unix:///run/spire/sockets/agent.sock
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["ca_address", "ca_root"], env = "SPIFFE_ENDPOINT_SOCKET")]
    spiffe_endpoint_socket: Option<String>,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        lifetime if lifetime < SHORTEST_LIFE => Err("must be 10s or longer".to_owned()),
        lifetime => Ok(lifetime),
    }
}

impl AuthorityArgs {
    /// What they say. The address of a Service is asked of the API server.
    pub(super) fn choice(self, run_dir: &Path, access: Access) -> Choice {
        match self {
            Self { spiffe_endpoint_socket: Some(endpoint), .. } => Choice::Spire(endpoint),
            Self { ca_address: Some(address), ca_bundle: Some(bundle), ca_token: token, ca_name: name, .. } => {
                let service = address.parse::<ServicePort>().is_ok().then_some(access);
                Choice::Istio(IstioConfig { address, name, bundle, token, service })
            }
            Self { ca_root, certificate_lifetime: lifetime, .. } => {
                Choice::Embedded { folder: ca_root.unwrap_or_else(|| run_dir.join(FOLDER)), lifetime }
            }
        }
    }
}
