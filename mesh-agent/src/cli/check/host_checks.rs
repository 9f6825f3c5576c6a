//! What the agent needs of the machine.

use std::{
    fs, io,
    path::{Component, Path},
};

use nix::sys::{
    resource::{Resource, getrlimit},
    statfs::{BPF_FS_MAGIC, statfs},
};

use super::Check;
use crate::{
    admin::lock,
    cli::{host, output::units},
    datapath::{self, Foreign},
};

/// Oldest kernel that the programs are tested on.
const MIN_KERNEL: (u32, u32) = (6, 1);
/// Descriptors below which a busy node runs out: a spliced connection takes six.
const MIN_DESCRIPTORS: u64 = 65_536;
/// Bits of CapEff that the agent needs, and for what.
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (12, "CAP_NET_ADMIN", "attaching the hooks"),
    (19, "CAP_SYS_PTRACE", "finding the network namespaces of the pods' processes"),
    (21, "CAP_SYS_ADMIN", "entering the pods' network namespaces and loading programs"),
];

pub(super) fn kernel() -> Check {
    match nix::sys::utsname::uname() {
        Ok(name) => judge_kernel(&name.release().to_string_lossy()),
        Err(errno) => Check::fail("kernel", format!("uname: {errno}"), "Run on Linux."),
    }
}

fn judge_kernel(release: &str) -> Check {
    let (major, minor) = MIN_KERNEL;
    match host::parse_release(release) {
        Some(version) if version >= MIN_KERNEL => Check::ok("kernel", release),
        Some(_) => Check::fail(
            "kernel",
            format!("{release} is older than {major}.{minor}"),
            format!("Boot Linux {major}.{minor} or newer (Debian 12 has 6.1)."),
        ),
        None => Check::warn(
            "kernel",
            format!("{release}: version not understood"),
            format!("Make sure that it is Linux {major}.{minor} or newer."),
        ),
    }
}

pub(super) fn cgroup(given: Option<&Path>) -> Check {
    match host::mounts() {
        Ok(mounts) => judge_cgroup(&mounts, given, |point| point.join("cgroup.type").exists(), &own_cgroup()),
        Err(error) => Check::fail("cgroup v2", format!("{error:#}"), "Mount /proc."),
    }
}

/// The path of our own cgroup, as our cgroup namespace shows it.
fn own_cgroup() -> String {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

/// `is_child`: whether the folder is a cgroup other than the root, which alone lacks `cgroup.type`. `own`: our own cgroup,
/// `/` where a namespace hides what is above it.
fn judge_cgroup(mounts: &[host::Mount], given: Option<&Path>, is_child: impl Fn(&Path) -> bool, own: &str) -> Check {
    const NAME: &str = "cgroup v2";
    let of_given = |point: &Path| mounts.iter().rfind(|mount| mount.point == point && mount.kind == "cgroup2");
    let mount = match given {
        Some(point) => match of_given(point) {
            Some(mount) => mount,
            None => {
                return Check::fail(
                    NAME,
                    format!("{} is not a mount of cgroup v2", point.display()),
                    "Leave --cgroup away, or name the mount point of the whole hierarchy.",
                );
            }
        },
        None => match host::choose_cgroup(mounts) {
            Some(mount) => mount,
            None => {
                return Check::fail(
                    NAME,
                    "not mounted",
                    "mount -t cgroup2 none /sys/fs/cgroup (or any folder, with --cgroup DIR).",
                );
            }
        },
    };
    let point = mount.point.display();
    // Folders above it: the node's tree, seen from within a namespace of cgroups that is further down.
    let is_above = mount.root.components().skip(1).all(|part| part == Component::ParentDir);
    let is_above = is_above && mount.root != Path::new("/");
    if (is_above || own != "/") && is_child(&mount.point) {
        return Check::ok(NAME, format!("{point} is the root of this node, which is a container itself"));
    }
    if !is_above && (mount.root != Path::new("/") || is_child(&mount.point)) {
        return Check::fail(
            NAME,
            format!("{point} shows only a part of the hierarchy"),
            "Pods outside it would not be captured: run the agent in the initial cgroup namespace (in Kubernetes, mount the host's /sys/fs/cgroup).",
        );
    }
    Check::ok(NAME, format!("{point} is the root"))
}

pub(super) fn bpffs(point: &Path) -> Check {
    const NAME: &str = "bpffs";
    match statfs(point) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Check::ok(NAME, point.display().to_string()),
        Err(_) if point.starts_with("/sys") => Check::fail(
            NAME,
            format!("the kernel has no {}", point.display()),
            "Mount sysfs, or boot a kernel with CONFIG_BPF_SYSCALL.",
        ),
        _ => Check::warn(
            NAME,
            format!("not mounted on {}", point.display()),
            format!(
                "The agent mounts it when it starts; in a container mount the node's (mount -t bpf bpf {}), or pins end with the container.",
                point.display()
            ),
        ),
    }
}

pub(super) fn foreign_programs(bpffs: &Path, cgroup: &Path) -> Check {
    judge_foreign(datapath::foreign(bpffs, cgroup))
}

fn judge_foreign(found: io::Result<Vec<Foreign>>) -> Check {
    const NAME: &str = "other programs";
    match found {
        Ok(foreign) if foreign.is_empty() => Check::ok(NAME, "none on the hooks that the agent uses"),
        Ok(foreign) if foreign.iter().all(|other| other.is_agent) => {
            Check::ok(NAME, "on the hooks that the agent uses: those of other mesh-agents, for their own pods")
        }
        Ok(foreign) => {
            let strangers = foreign.iter().filter(|other| !other.is_agent);
            let list: Vec<String> =
                strangers.map(|other| format!("{} ({}, id {})", other.name, other.hook, other.id)).collect();
            Check::warn(
                NAME,
                format!("on the hooks that the agent uses: {}", list.join(", ")),
                "If they rewrite addresses for pods (Cilium: set socketLB.hostNamespaceOnly=true; Calico eBPF: disable connect-time load balancing), the mesh sees rewritten destinations.",
            )
        }
        Err(error) => Check::warn(NAME, format!("cannot be listed: {error}"), "Run the check as root."),
    }
}

pub(super) fn capabilities() -> Check {
    judge_capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn judge_capabilities(status: &str) -> Check {
    const NAME: &str = "capabilities";
    let Some(effective) = host::status_field(status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok()) else {
        return Check::fail(NAME, "cannot read CapEff in /proc/self/status", "Mount /proc.");
    };
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| effective >> bit & 1 == 0)
        .map(|(_, name, purpose)| format!("{name} (for {purpose})"))
        .collect();
    if missing.is_empty() {
        let names: Vec<_> = CAPABILITIES.iter().map(|(_, name, _)| *name).collect();
        return Check::ok(NAME, names.join(", "));
    }
    Check::fail(
        NAME,
        format!("missing {}", missing.join(", ")),
        "Run as root, or add them (AmbientCapabilities= in systemd, securityContext.capabilities.add in Kubernetes).",
    )
}

pub(super) fn pid_namespace() -> Check {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    judge_pid_namespace(&link.to_string_lossy())
}

/// The initial pid namespace has a fixed inode. Pods are found by processes that the agent must see.
fn judge_pid_namespace(link: &str) -> Check {
    const NAME: &str = "pid namespace";
    const INITIAL: &str = "pid:[4026531836]";
    match link {
        INITIAL => Check::ok(NAME, "the initial one"),
        "" => Check::warn(NAME, "unknown: cannot read /proc/self/ns/pid", "Mount /proc."),
        other => Check::warn(
            NAME,
            format!("{other} is not the initial one"),
            "Fine if the node is a container itself (kind) and this is its pid namespace; else pods' processes are not seen (hostPID: true, docker --pid=host).",
        ),
    }
}

pub(super) fn object() -> Check {
    const NAME: &str = "eBPF programs";
    if datapath::object_built() {
        return Check::ok(NAME, "built in");
    }
    Check::fail(NAME, "not built into this binary", format!("{}.", datapath::Error::NotBuilt))
}

pub(super) fn btf() -> Check {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(PATH).exists() {
        return Check::ok("kernel BTF", PATH);
    }
    Check::warn(
        "kernel BTF",
        format!("no {PATH}"),
        "None needed to run; bpftool shows less without it (CONFIG_DEBUG_INFO_BTF).",
    )
}

pub(super) fn descriptors() -> Check {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) => judge_descriptors(hard),
        Err(errno) => Check::warn("descriptors", format!("getrlimit: {errno}"), "None."),
    }
}

fn judge_descriptors(hard: u64) -> Check {
    let found = format!("at most {} open", units::count(hard));
    if hard >= MIN_DESCRIPTORS {
        return Check::ok("descriptors", found);
    }
    Check::warn(
        "descriptors",
        found,
        format!(
            "A relayed connection takes two to six: raise the hard limit to {} or more (LimitNOFILE=, ulimit -Hn).",
            units::count(MIN_DESCRIPTORS)
        ),
    )
}

/// Whether another agent runs is told beside the line: then its own listeners are no conflict.
pub(super) fn other_agent(run_dir: &Path) -> (Check, bool) {
    const NAME: &str = "other agent";
    match lock::RunLock::acquire_existing(run_dir) {
        Ok(_) => (Check::ok(NAME, format!("none with {}", run_dir.display())), false),
        Err(lock::Error::Held { pid, .. }) => {
            let pid = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
            let found = format!("one is running with {}{pid}", run_dir.display());
            let remedy =
                "Fine if it is the one you mean (mesh-agent status shows it); stop it before you start another.";
            (Check::warn(NAME, found, remedy), true)
        }
        Err(lock::Error::Io { source, .. }) => {
            let found = format!("unknown: {}: {source}", run_dir.join("lock").display());
            (Check::warn(NAME, found, "Check again as root."), false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Outcome;

    #[test]
    fn kernels_older_than_the_floor_fail() {
        assert_eq!(judge_kernel("6.1.0-38-amd64").outcome, Outcome::Ok);
        assert_eq!(judge_kernel("7.0.1").outcome, Outcome::Ok);
        assert_eq!(judge_kernel("5.15.0-105-generic").outcome, Outcome::Fail);
        assert_eq!(judge_kernel("mystery").outcome, Outcome::Warn);
    }

    #[test]
    fn capabilities_are_named_with_their_purpose() {
        assert_eq!(judge_capabilities("CapEff:\t000001fffeffffff\n").outcome, Outcome::Ok);
        let none = judge_capabilities("CapEff:\t0000000000001000\n");
        assert_eq!(none.outcome, Outcome::Fail);
        for missing in ["CAP_SYS_ADMIN (for entering", "CAP_SYS_PTRACE (for finding"] {
            assert!(none.found.contains(missing) && !none.found.contains("CAP_NET_ADMIN"), "{none:?}");
        }
    }

    #[test]
    fn a_pid_namespace_of_its_own_is_doubtful() {
        assert_eq!(judge_pid_namespace("pid:[4026531836]").outcome, Outcome::Ok);
        assert_eq!(judge_pid_namespace("pid:[4026532265]").outcome, Outcome::Warn);
    }

    #[test]
    fn the_cgroup_must_be_the_root_of_the_hierarchy() {
        let mounts = host::parse_mountinfo(
            "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 none rw\n2 0 0:2 /kubepods /part rw - cgroup2 none rw\n",
        );
        let judge = |given: Option<&str>, child| judge_cgroup(&mounts, given.map(Path::new), |_| child, "/").outcome;
        assert_eq!(judge(None, false), Outcome::Ok);
        assert_eq!(judge(None, true), Outcome::Fail, "a cgroup namespace hides the real root");
        assert_eq!(judge(Some("/part"), false), Outcome::Fail);
        assert_eq!(judge(Some("/tmp"), false), Outcome::Fail);
        assert_eq!(judge_cgroup(&[], None, |_| false, "/").outcome, Outcome::Fail);
        // The node is a container: its root is no root of the machine, and we are further down.
        assert_eq!(judge_cgroup(&mounts, None, |_| true, "/kubepods/pod1/2").outcome, Outcome::Ok);
        let of_the_node = host::parse_mountinfo("1 0 0:1 /../../.. /host/cgroup ro - cgroup2 none rw\n");
        for child in [false, true] {
            assert_eq!(judge_cgroup(&of_the_node, None, |_| child, "/").outcome, Outcome::Ok);
        }
    }

    #[test]
    fn a_folder_that_is_not_bpffs_gets_the_command_to_mount_it() {
        let folder = tempfile::tempdir().unwrap();
        let check = bpffs(folder.path());
        assert_eq!(check.outcome, Outcome::Warn);
        assert!(check.remedy.contains(&format!("mount -t bpf bpf {}", folder.path().display())), "{check:?}");
        assert_eq!(bpffs(Path::new("/sys/fs/no-bpf")).outcome, Outcome::Fail);
    }

    #[test]
    fn programs_of_strangers_are_named_and_those_of_other_agents_are_no_reason_to_worry() {
        let program = |name: &str, id, is_agent| Foreign { hook: "connect4", name: name.to_owned(), id, is_agent };
        let agents = vec![program("connect4", 7, true), program("connect6", 8, true)];
        assert_eq!(judge_foreign(Ok(agents.clone())).outcome, Outcome::Ok);
        let check = judge_foreign(Ok([agents, vec![program("cil_sock4_conn", 9, false)]].concat()));
        assert_eq!(check.outcome, Outcome::Warn);
        assert!(check.found.ends_with(": cil_sock4_conn (connect4, id 9)"), "{check:?}");
    }

    #[test]
    fn a_running_agent_is_found_by_its_lock() {
        let run_dir = tempfile::tempdir().unwrap();
        assert!(!other_agent(run_dir.path()).1);
        let lock = lock::RunLock::acquire(run_dir.path()).unwrap();
        let (check, running) = other_agent(run_dir.path());
        assert!(running && check.outcome == Outcome::Warn, "it may be the one that is meant");
        assert!(check.found.ends_with(&format!("pid {}", std::process::id())), "{check:?}");
        drop(lock);
        assert_eq!(other_agent(run_dir.path()).0.outcome, Outcome::Ok);
    }
}
