//! The test API server by itself: for measurements of an agent in a process of its own, and for a look by hand.

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Parser;
use mesh_tests::api::{ApiServer, Options, Size, fill};

/// A Kubernetes API server for tests
#[derive(Parser)]
struct Args {
    /// Address to listen at; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where to write `kubeconfig` and `ca.crt`, for an administrator
    #[arg(long)]
    directory: PathBuf,
    /// YAML files with objects to begin with
    #[arg(long)]
    load: Vec<PathBuf>,
    /// Pods of a large cluster to begin with
    #[arg(long, default_value_t = 0)]
    pods: usize,
    /// Its services, all pods being endpoints of one
    #[arg(long, default_value_t = 1)]
    services: usize,
    /// Its nodes
    #[arg(long, default_value_t = 1)]
    nodes: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let server = ApiServer::with(Options { listen: args.listen, ..Options::default() });
    for path in &args.load {
        server.put_yaml(&std::fs::read_to_string(path).with_context(|| path.display().to_string())?);
    }
    if args.pods > 0 {
        fill(&server, &Size { pods: args.pods, services: args.services, nodes: args.nodes });
    }
    std::fs::create_dir_all(&args.directory)?;
    write(&args.directory, "ca.crt", &server.authority())?;
    write(&args.directory, "kubeconfig", &server.kubeconfig(server.admin()))?;
    let (objects, bytes) = server.size();
    let mut out = std::io::stdout();
    writeln!(out, "{} serves {objects} objects of {} MB", server.url(), bytes / 1_000_000)?;
    out.flush()?;
    // Until the signal that ends a process by default.
    loop {
        std::thread::park();
    }
}

fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    let path = directory.join(name);
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}
