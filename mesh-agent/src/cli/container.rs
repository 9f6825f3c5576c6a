//! What the DaemonSet calls beside `run`: `mount-bpffs`, `probe`.

use std::{fs, path::Path};

use anyhow::{Context, bail, ensure};
use hyper::Method;
use nix::mount::{MsFlags, mount};

use super::{Bpffs, RunDir, host, print};
use crate::admin::{client, socket_path};

#[derive(Debug, clap::Args)]
pub(super) struct MountArgs {
    #[command(flatten)]
    bpffs: Bpffs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ProbeArgs {
    #[command(flatten)]
    run_dir: RunDir,
}

/// Mounts a bpffs where there is none, so that pins outlive the container of the agent.
pub(super) fn mount_bpffs(args: &MountArgs) -> anyhow::Result<u8> {
    let point = &args.bpffs.bpffs;
    if host::mounts()?.iter().any(|mount| mount.point == *point && mount.kind == "bpf") {
        print(&format!("{} is mounted\n", point.display()))?;
        return Ok(0);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), point, Some("bpf"), flags, Some("mode=0700"))
        .with_context(|| format!("cannot mount a bpffs at {}; is the container privileged?", point.display()))?;
    print(&format!("mounted {}\n", point.display()))?;
    Ok(0)
}

/// Whether the agent of this container is in charge and ready. Another one may be in charge of the node still: it
/// answers at the same places, and is known by its cgroup.
pub(super) fn probe(args: &ProbeArgs) -> anyhow::Result<u8> {
    let run_dir = &args.run_dir.run_dir;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    runtime.block_on(async {
        let socket = socket_path(run_dir);
        let peer = tokio::net::UnixStream::connect(&socket).await.and_then(|stream| stream.peer_cred());
        let peer = peer.with_context(|| format!("no agent answers on {}", socket.display()))?;
        let pid = peer.pid().context("the kernel does not tell who answers")?;
        let cgroup = |process: &str| {
            let path = Path::new("/proc").join(process).join("cgroup");
            fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        ensure!(cgroup(&pid.to_string())? == cgroup("self")?, "another agent is in charge still (pid {pid})");
        let (code, body) = client::request(run_dir, Method::GET, "/readyz", "").await?;
        if !code.is_success() {
            bail!("not ready: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(0)
    })
}
