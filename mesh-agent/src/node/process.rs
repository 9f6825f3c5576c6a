//! The network namespace of what runs in a cgroup.

use std::{fs, io, path::Path};

use crate::net::netns::{Netns, NetnsId};

/// How far below a container's cgroup its processes may be: crun puts them into `container`, a container with its own
/// systemd further down.
const DEPTH: usize = 3;

/// What is in a cgroup.
#[derive(Debug)]
pub(super) enum Look {
    /// No process.
    Empty,
    /// Only processes in the node's network namespace: it is a host-network pod's, or the runtime's, still on its way.
    OnNode,
    /// There are processes, and this one may not look at them.
    Hidden(io::Error),
    /// The first process that has left the node's namespace is in this one.
    Found(Netns),
}

/// Looks for the first process, in the order in which they came, that is in a namespace which is none of `node`.
pub(super) fn look(cgroup: &Path, node: &[NetnsId]) -> Look {
    let mut result = Look::Empty;
    walk(cgroup, DEPTH, &mut |cgroup, pid| match namespace(cgroup, pid, node) {
        Ok(Some(netns)) => {
            result = Look::Found(netns);
            true
        }
        Ok(None) => {
            result = Look::OnNode;
            false
        }
        Err(error) if has_ended(&error) => false,
        Err(error) => {
            result = Look::Hidden(error);
            true
        }
    });
    result
}

/// Whether any process is in the cgroup or below it, as its `cgroup.events` says (cgroup-v2.rst).
pub(super) fn is_populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "populated 1"))
}

/// Tells `visit` of each process in the cgroup and below, until it answers true.
fn walk(cgroup: &Path, depth: usize, visit: &mut impl FnMut(&Path, &str) -> bool) -> bool {
    if processes(cgroup).lines().any(|pid| visit(cgroup, pid)) {
        return true;
    }
    if depth == 0 {
        return false;
    }
    let Ok(entries) = cgroup.read_dir() else { return false };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .any(|entry| walk(&entry.path(), depth - 1, visit))
}

/// The process ids in a cgroup, one a line, in the order in which they came; empty if it is gone.
fn processes(cgroup: &Path) -> String {
    fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default()
}

/// The namespace of a process, unless it is one of `node`.
fn namespace(cgroup: &Path, pid: &str, node: &[NetnsId]) -> io::Result<Option<Netns>> {
    if pid == "0" {
        // How the kernel writes those of pid namespaces that are not below ours (cgroup-v2.rst, "cgroup.procs").
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the agent is not in the node's pid namespace"));
    }
    // Held from here on: the process may end, and its number be given to another.
    let netns = Netns::of_process(pid)?;
    if node.contains(&netns.id()) {
        return Ok(None);
    }
    // So that it is this very process that was looked at: it has been in the cgroup before and after.
    if !processes(cgroup).lines().any(|other| other == pid) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(Some(netns))
}

fn has_ended(error: &io::Error) -> bool {
    // ESRCH is how /proc answers about a process that has just ended.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}
