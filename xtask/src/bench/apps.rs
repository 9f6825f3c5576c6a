//! The applications in the server pods: nginx with 128 bytes of text, an echo and a sink. The same in every
//! configuration, and none of them knows of a mesh.

use std::{fs, path::Path};

use anyhow::Result;

use super::{rig::Rig, topology::Topology};
use crate::lab::{accounts::Role, process::Process, require};

/// nginx.
pub(super) const HTTP: u16 = 8080;
/// Sends back what it gets.
pub(super) const ECHO: u16 = 9000;
/// Reads to the end.
pub(super) const SINK: u16 = 9001;

/// Starts them in pods B and C.
///
/// # Errors
/// nginx is missing, or a process can't be started.
pub(super) fn start(rig: &Rig, topology: &Topology) -> Result<Vec<Process>> {
    let nginx = require("nginx", "nginx-light")?;
    let mut apps = Vec::new();
    for pod in ["b", "c"] {
        let netns = topology.netns(pod);
        let launch = rig.launch(&netns, Role::Server);
        let folder = rig.workspace.path();
        let conf = folder.join(format!("nginx-{pod}.conf"));
        fs::write(&conf, nginx_conf(&folder.join(format!("nginx-{pod}.pid"))))?;
        let log = folder.join(format!("nginx-{pod}.log"));
        apps.push(launch.start(&nginx, ["-c".as_ref(), conf.as_os_str(), "-e".as_ref(), "stderr".as_ref()], log)?);
        let (echo, sink) = (ECHO.to_string(), SINK.to_string());
        let log = folder.join(format!("serve-{pod}.log"));
        apps.push(launch.start(&rig.tool, ["serve", "--echo", &echo, "--sink", &sink], log)?);
    }
    Ok(apps)
}

/// One process, so that its memory and death are simple; never closes a connection by itself.
fn nginx_conf(pid: &Path) -> String {
    format!(
        "daemon off;
master_process off;
pid {};
error_log stderr warn;
events {{
  worker_connections 19000;
}}
http {{
  access_log off;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  server_tokens off;
  server {{
    listen {HTTP} backlog=8192;
    default_type text/plain;
    location / {{ return 200 \"{:x<128}\"; }}
  }}
}}
",
        pid.display(),
        ""
    )
}
