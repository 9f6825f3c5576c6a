//! The unix socket that `mesh-agent status` asks, the lock that keeps a second agent away, and the HTTP listener for the
//! cluster ([`http`]).
//!
//! HTTP/1.1: `GET /v1/status`, `GET /v1/policy/audit?since=SECONDS`, `GET /v1/policy/certificates`,
//! `GET /v1/policy/explain?source=&destination=&port=`, `GET` and `POST /v1/handover`, `GET /healthz`, `GET /readyz`, `PUT /v1/log-level`.

pub mod client;
pub mod http;
pub mod lock;
pub(crate) mod query;
pub mod server;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

/// Path of the admin socket in a run folder.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("admin.sock")
}

/// Path of the admin socket of an agent that is about to be there, or was: another one's has the name.
pub fn other_socket_path(run_dir: &Path, pid: u32) -> PathBuf {
    run_dir.join(format!("admin.sock.{pid}"))
}

/// File in a run folder that names the bpffs that the agent has mounted, if it has.
pub fn mounted_path(run_dir: &Path) -> PathBuf {
    run_dir.join("mounted-bpffs")
}

/// Path of the lock in a run folder.
pub fn lock_path(run_dir: &Path) -> PathBuf {
    run_dir.join("lock")
}
