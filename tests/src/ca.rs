//! The authority of several nodes, as a process on the first one.

use std::{
    fs::File,
    io::BufRead as _,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::{Cluster, agent::binary, wait::eventually};

/// Where it listens: the first node's end of the link.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 31, 77, 1);
const PORT: u16 = 15012;

/// A running authority; killed on drop.
#[derive(Debug)]
pub struct Ca {
    child: Child,
}

/// Its folder: root, bundle, tokens.
fn folder(cluster: &Cluster) -> PathBuf {
    cluster.one.folder.path().join("authority")
}

/// The file with the token of the node with this number.
fn token(cluster: &Cluster, number: usize) -> PathBuf {
    folder(cluster).join(format!("token-{number}"))
}

/// What the agent of the node with this number, 1 or 2, is to be told.
pub fn arguments(cluster: &Cluster, number: usize) -> Vec<String> {
    let bundle = folder(cluster).join("root").join("bundle.pem");
    let address = format!("{ADDRESS}:{PORT}");
    let flags = [
        ("--ca-address", address),
        ("--ca-bundle", bundle.display().to_string()),
        ("--ca-token", token(cluster, number).display().to_string()),
    ];
    flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

impl Ca {
    /// Starts it, with the root that an earlier one has left, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(cluster: &Cluster) -> Self {
        let folder = folder(cluster);
        std::fs::create_dir_all(&folder).expect("scratch space");
        let mut tokens = String::new();
        for (number, node) in (1..).zip(cluster.nodes()) {
            let secret = format!("the-token-of-node-{number}");
            std::fs::write(token(cluster, number), &secret).expect("scratch space");
            tokens.extend([&node.name, " ", &secret, "\n"]);
        }
        std::fs::write(folder.join("tokens"), tokens).expect("scratch space");
        let log = folder.join("log");
        let mut command = Command::new(binary());
        command.arg("ca").arg("--manifests").arg(cluster.one.manifests()).arg("--root").arg(folder.join("root"));
        command.arg("--tokens").arg(folder.join("tokens")).args(["--listen", &format!("{ADDRESS}:{PORT}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).expect("scratch space"));
        let mut child = cluster.one.namespace.run(|| command.spawn()).expect("it can be started");
        eventually("the authority serves", || {
            let lines = std::io::BufReader::new(File::open(&log).ok()?).lines();
            let serves = lines.map_while(Result::ok).any(|line| line.contains("serving certificates"));
            if let Some(status) = child.try_wait().expect("our child") {
                panic!("the authority ended with {status}:\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            serves.then_some(())
        });
        Self { child }
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
