//! Programs of others on the hooks that the agent uses.

use std::{collections::HashMap, fs::File, io, os::fd::AsFd, path::Path};

use aya::programs::loaded_programs;

use super::Pins;
use crate::sys;

/// Hooks and their `enum bpf_attach_type` (include/uapi/linux/bpf.h).
const HOOKS: [(&str, u32); 5] =
    [("sock_ops", 3), ("connect4", 10), ("connect6", 11), ("getpeername4", 29), ("getpeername6", 30)];

/// A program that is not this agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The hook it is attached to.
    pub hook: &'static str,
    /// Its name, as the kernel cut it to 15 characters.
    pub name: String,
    /// Its id.
    pub id: u32,
}

/// What others have attached to a cgroup. They see an app's destination before or after the agent has rewritten it.
pub fn foreign(bpffs: &Path, cgroup: &Path) -> io::Result<Vec<Foreign>> {
    let cgroup = File::open(cgroup)?;
    let own = own(bpffs);
    let names: HashMap<u32, String> = loaded_programs()
        .filter_map(Result::ok)
        .map(|program| (program.id(), program.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    let mut foreign = Vec::new();
    for (hook, attach_type) in HOOKS {
        for id in sys::bpf_prog_query(cgroup.as_fd(), attach_type)? {
            if !own.contains(&id) {
                foreign.push(Foreign { hook, name: names.get(&id).cloned().unwrap_or_default(), id });
            }
        }
    }
    Ok(foreign)
}

/// Programs of the links that are pinned below `bpffs`.
fn own(bpffs: &Path) -> Vec<u32> {
    let versions = std::fs::read_dir(Pins::root(bpffs)).into_iter().flatten().filter_map(Result::ok);
    versions
        .flat_map(|version| std::fs::read_dir(version.path()).into_iter().flatten().filter_map(Result::ok))
        .filter(|pin| pin.file_name().to_string_lossy().starts_with("link_"))
        .filter_map(|pin| super::attach::program_of(&pin.path()))
        .collect()
}
