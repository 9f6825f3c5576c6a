//! HAProxy on node 1, shared by its pods and spoken to openly: one hop without interception, the least that a proxy
//! which understands HTTP can cost.

use std::{fmt::Write, fs, path::PathBuf};

use anyhow::Result;

use crate::{
    bench::{
        apps::{ECHO, HTTP, SINK},
        rig::Rig,
        topology::{NODE_1, POD_B, Topology},
    },
    lab::{accounts::Role, process::Process, require as program},
};

/// Where it is.
///
/// # Errors
/// Nowhere.
pub(super) fn require() -> Result<PathBuf> {
    program("haproxy", "haproxy")
}

/// Starts it.
///
/// # Errors
/// It can't be started.
pub(super) fn start(rig: &Rig, topology: &Topology) -> Result<Process> {
    let folder = rig.workspace.path();
    let conf = folder.join("haproxy.cfg");
    fs::write(&conf, config(if rig.pin.is_some() { 1 } else { 2 }, rig.hold + 400))?;
    let netns = topology.netns("n1");
    rig.launch(&netns, Role::Proxy).start(
        &require()?,
        ["-db".as_ref(), "-f".as_ref(), conf.as_os_str()],
        folder.join("haproxy.log"),
    )
}

fn config(threads: u32, connections: u64) -> String {
    let mut text = format!(
        "global
    nbthread {threads}
    maxconn {connections}
defaults
    timeout connect 5s
    timeout client 1h
    timeout server 1h
"
    );
    for (port, mode) in [(HTTP, "mode http\n    http-reuse always"), (ECHO, "mode tcp"), (SINK, "mode tcp")] {
        let _infallible = write!(
            text,
            "listen port-{port}
    {mode}
    bind {NODE_1}:{port}
    server app {POD_B}:{port}
"
        );
    }
    text
}
