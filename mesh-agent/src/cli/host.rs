//! What this machine says about itself. The parsers are pure functions over the kernel's text.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::Context;

/// What to say when there is no cgroup v2.
pub(super) const NO_CGROUP: &str =
    "no cgroup v2 hierarchy is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup) or name it by --cgroup DIR";

/// A line of mountinfo, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Which folder of the file system is mounted.
    pub(super) root: PathBuf,
    /// Where.
    pub(super) point: PathBuf,
    /// File system type.
    pub(super) kind: String,
}

/// Parses `/proc/PID/mountinfo`; lines it does not understand are left out.
pub(super) fn parse_mountinfo(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            // id parent major:minor root point options [optional fields] - type source super-options
            let (front, back) = line.split_once(" - ")?;
            let mut front = front.split(' ').skip(3);
            let (root, point) = (front.next()?, front.next()?);
            let kind = back.split(' ').next()?.to_owned();
            Some(Mount { root: unescape(root).into(), point: unescape(point).into(), kind })
        })
        .collect()
}

/// Space, tab, newline and backslash are octal in mountinfo.
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (octal, plain)| text.replace(octal, plain))
}

/// The mounts of this process.
pub(super) fn mounts() -> anyhow::Result<Vec<Mount>> {
    let text =
        fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo; is /proc mounted?")?;
    Ok(parse_mountinfo(&text))
}

/// The cgroup v2 mount to use: one of the whole hierarchy, `/sys/fs/cgroup` before others.
///
/// In a container with a cgroup namespace of its own, `/` is the container's cgroup, and the node's root, mounted from
/// the node, shows as so many folders above it (cgroup_namespaces(7)).
pub(super) fn choose_cgroup(mounts: &[Mount]) -> Option<&Mount> {
    let of_kind = || mounts.iter().filter(|mount| mount.kind == "cgroup2");
    let above = |mount: &Mount| mount.root.components().filter(|part| *part == Component::ParentDir).count();
    if let Some(highest) = of_kind().filter(|mount| above(mount) > 0).max_by_key(|mount| above(mount)) {
        return Some(highest);
    }
    let whole = || of_kind().filter(|mount| mount.root == Path::new("/"));
    whole()
        .find(|mount| mount.point == Path::new("/sys/fs/cgroup"))
        .or_else(|| whole().next())
        .or_else(|| of_kind().next())
}

/// Where cgroup v2 is mounted.
pub(super) fn cgroup_mount() -> anyhow::Result<Option<PathBuf>> {
    Ok(choose_cgroup(&mounts()?).map(|mount| mount.point.clone()))
}

/// A field of `/proc/PID/status`.
pub(super) fn status_field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

/// Major and minor version in `uname -r`.
pub(super) fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Ports in `/proc/net/tcp` or `tcp6` on which something listens.
pub(super) fn parse_listening_ports(text: &str) -> Vec<u16> {
    const LISTEN: &str = "0A";
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let (_, port) = local.rsplit_once(':')?;
        (state == LISTEN).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    let mut ports: Vec<_> = text.lines().filter_map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The host name.
pub(super) fn node_name() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
40 31 0:38 /system.slice /mnt/some\\040slice rw - cgroup2 cgroup2 rw
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 master:1 - cgroup2 cgroup2 rw
nonsense
";

    #[test]
    fn mountinfo_with_optional_fields_and_escapes() {
        let mounts = parse_mountinfo(HYBRID);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].kind, "cgroup");
        assert_eq!(
            mounts[2],
            Mount { root: "/system.slice".into(), point: "/mnt/some slice".into(), kind: "cgroup2".into() }
        );
    }

    #[test]
    fn the_whole_cgroup_tree_is_preferred_to_a_part_of_it() {
        let chosen = |text| choose_cgroup(&parse_mountinfo(text)).map(|mount| mount.point.clone());
        assert_eq!(chosen(HYBRID), Some("/sys/fs/cgroup/unified".into()));
        let pure = format!("{HYBRID}42 23 0:40 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
        assert_eq!(chosen(&pure), Some("/sys/fs/cgroup".into()));
        let in_container = format!(
            "50 23 0:40 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n51 23 0:40 /../../.. /host/cgroup rw - cgroup2 cgroup rw\n{HYBRID}"
        );
        assert_eq!(chosen(&in_container), Some("/host/cgroup".into()));
        assert_eq!(chosen("36 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw\n"), None);
    }

    #[test]
    fn status_fields_by_whole_name() {
        let text = "Name:\tmesh\nCapPrm:\t00\nCapEff:\t000001ffffffffff\n";
        assert_eq!(status_field(text, "CapEff"), Some("000001ffffffffff"));
        assert_eq!(status_field(text, "Cap"), None);
    }

    #[test]
    fn releases() {
        assert_eq!(parse_release("6.1.0-38-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_release("6.18.44"), Some((6, 18)));
        assert_eq!(parse_release("6.12"), Some((6, 12)));
        assert_eq!(parse_release("linux"), None);
    }

    #[test]
    fn only_listeners_count_as_taken_ports() {
        let text = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 651 1 0 100 0 0 10 0
   1: 0100007F:3A9E 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 652 1 0 20 4 30 10 -1
   2: 00000000000000000000000000000000:3A99 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1
";
        assert_eq!(parse_listening_ports(text), [15001]);
    }
}
