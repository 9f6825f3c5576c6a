//! What a cgroup is, by its name. Pure.
//!
//! Names as the kubelet makes them (`pkg/kubelet/cm/cgroup_manager_linux.go`, `pod_container_manager_linux.go` in
//! kubernetes/kubernetes) with its two drivers, and as container runtimes do below:
//!
//! | | cgroupfs | systemd |
//! |---|---|---|
//! | root | `kubepods` | `kubepods.slice`, `PREFIX-kubepods.slice` |
//! | QoS class | `burstable`, `besteffort` | `kubepods-burstable.slice`, `kubepods-besteffort.slice` |
//! | pod | `podUID` | `kubepods-burstable-podUID.slice`, the dashes of the UID as underscores |
//! | container | `ID` (containerd, docker), `crio-ID` | `cri-containerd-ID.scope`, `crio-ID.scope`, `docker-ID.scope` |
//!
//! The root may be anywhere: `/kubepods`, `/kubelet/kubepods`, `/kubelet.slice/kubelet-kubepods.slice`.

use crate::model::PodUid;

/// Deepest folder, counted from the root of the hierarchy, in which a kubelet's root is looked for.
const MAX_PREFIX: usize = 4;

/// Ends of units that hold processes and no kubelet: what is below them is their own business.
const LEAVES: [&str; 6] = [".service", ".scope", ".mount", ".socket", ".swap", ".automount"];

/// What a cgroup is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Pods may be below it: above a kubelet's root, the root itself, or a QoS class.
    Way,
    /// A pod.
    Pod(PodUid),
    /// A container of this pod, its sandbox too.
    Container(PodUid),
    /// Nothing to look at.
    Other,
}

/// The role of the cgroup at `path`, the names from the root of the hierarchy to it.
pub(super) fn role(path: &[&str]) -> Role {
    let Some(root) = path.iter().position(|name| is_kubelet_root(name)) else {
        let is_way = path.len() <= MAX_PREFIX
            && path.iter().all(|name| !LEAVES.iter().any(|end| name.ends_with(end)))
            && path.first() != Some(&"user.slice");
        return if is_way { Role::Way } else { Role::Other };
    };
    let below = path.get(root + 1..).unwrap_or_default();
    let (class, below) = match below {
        [] => return Role::Way,
        [class, below @ ..] if is_class(class) => (true, below),
        below => (false, below),
    };
    match below {
        [] if class => Role::Way,
        [pod] => pod_uid(pod).map_or(Role::Other, Role::Pod),
        [pod, container] if is_container(container) => pod_uid(pod).map_or(Role::Other, Role::Container),
        _ => Role::Other,
    }
}

/// The last part of a slice's name; the name itself if it is none.
fn last_part(name: &str) -> &str {
    match name.strip_suffix(".slice") {
        Some(name) => name.rsplit('-').next().unwrap_or(name),
        None => name,
    }
}

fn is_kubelet_root(name: &str) -> bool {
    last_part(name) == "kubepods"
}

fn is_class(name: &str) -> bool {
    matches!(last_part(name), "burstable" | "besteffort")
}

/// The UID in a pod's name: `podUID`, or `...-podUID.slice`.
fn pod_uid(name: &str) -> Option<PodUid> {
    PodUid::parse(&last_part(name).strip_prefix("pod")?.replace('_', "-"))
}

/// Whether a cgroup in a pod's is a container's. CRI-O's monitor has one of its own, in the node's namespaces.
fn is_container(name: &str) -> bool {
    !name.starts_with("crio-conmon-")
}

#[cfg(test)]
mod tests;
