//! Programs of others on the hooks that the agent uses.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::fd::AsFd,
    path::Path,
};

use aya::{maps::loaded_maps, programs::loaded_programs};

use super::Pins;
use crate::sys;

/// Hooks and their `enum bpf_attach_type` (include/uapi/linux/bpf.h).
const HOOKS: [(&str, u32); 7] = [
    ("sock_ops", 3),
    ("connect4", 10),
    ("connect6", 11),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("getsockname4", 31),
    ("getsockname6", 32),
];
/// An agent's program, whatever the agent's version, uses this many maps of our names or more.
const OWN_MAPS: usize = 2;

/// A program that is not this agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The hook it is attached to.
    pub hook: &'static str,
    /// Its name, as the kernel cut it to 15 characters.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// Whether it is of another mesh-agent, which sees to its own pods only.
    pub is_agent: bool,
}

/// What others have attached to a cgroup. They see an app's destination before or after the agent has rewritten it.
pub fn foreign(bpffs: &Path, cgroup: &Path) -> io::Result<Vec<Foreign>> {
    let cgroup = File::open(cgroup)?;
    let own = own(bpffs);
    let maps: HashSet<u32> = loaded_maps()
        .filter_map(Result::ok)
        .filter(|map| map.name_as_str().is_some_and(|name| mesh_common::maps::NAMES.contains(&name)))
        .map(|map| map.id())
        .collect();
    let programs: HashMap<u32, (String, bool)> = loaded_programs()
        .filter_map(Result::ok)
        .map(|program| {
            let used = program.map_ids().ok().flatten().unwrap_or_default();
            let is_agent = used.iter().filter(|map| maps.contains(map)).count() >= OWN_MAPS;
            (program.id(), (program.name_as_str().unwrap_or_default().to_owned(), is_agent))
        })
        .collect();
    let mut foreign = Vec::new();
    for (hook, attach_type) in HOOKS {
        for id in sys::bpf_prog_query(cgroup.as_fd(), attach_type)? {
            if !own.contains(&id) {
                let (name, is_agent) = programs.get(&id).cloned().unwrap_or_default();
                foreign.push(Foreign { hook, name, id, is_agent });
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
