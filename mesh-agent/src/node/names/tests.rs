use super::*;

/// `way`, `pod UID`, `container of UID`, or `-`.
fn shown(path: &str) -> String {
    let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
    match role(&names) {
        Role::Way => "way".to_owned(),
        Role::Pod(uid) => format!("pod {uid}"),
        Role::Container(uid) => format!("container of {uid}"),
        Role::Other => "-".to_owned(),
    }
}

const UID: &str = "0f974531-63b9-45c0-b5ed-377d4e981b72";
const SLICE_UID: &str = "0f974531_63b9_45c0_b5ed_377d4e981b72";
const ID: &str = "21ebf4616fc03c4f20e7d89de7a852e54548828132b1131ddd82d40a66bfcf2c";

#[test]
fn the_tree_of_a_recorded_node_is_understood_whole() {
    // kubelet 1.36.2, containerd 1.6.20, cgroupfs driver; one pod of it is static.
    let tree = include_str!("kubelet-1.36-cgroupfs.txt");
    let mut counts = [0; 3];
    for path in tree.lines() {
        let kind = match shown(path).split(' ').next() {
            Some("way") => 0,
            Some("pod") => 1,
            Some("container") => 2,
            other => panic!("{path}: {other:?}"),
        };
        counts[kind] += 1;
    }
    assert_eq!(counts, [3, 7, 16]);
    assert_eq!(
        shown("/kubepods/besteffort/pode6484ad60ee4a4f8f9ac017dc410c5b8"),
        "pod e6484ad60ee4a4f8f9ac017dc410c5b8"
    );
}

#[test]
fn pods_are_found_whatever_the_driver_the_runtime_and_the_root() {
    let slice = "kubepods.slice/kubepods-burstable.slice";
    let kind = "kubelet.slice/kubelet-kubepods.slice";
    for pod in [
        format!("/kubepods/pod{UID}"),
        format!("/kubepods/burstable/pod{UID}"),
        format!("/kubelet/kubepods/besteffort/pod{UID}"),
        format!("/k8srig-n1/kubepods/besteffort/pod{UID}"),
        format!("/kubepods.slice/kubepods-pod{SLICE_UID}.slice"),
        format!("/{slice}/kubepods-burstable-pod{SLICE_UID}.slice"),
        format!("/{kind}/kubelet-kubepods-pod{SLICE_UID}.slice"),
        format!("/{kind}/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{SLICE_UID}.slice"),
        format!("/a.slice/a-b.slice/a-b-kubepods.slice/a-b-kubepods-pod{SLICE_UID}.slice"),
    ] {
        assert_eq!(shown(&pod), format!("pod {UID}"), "{pod}");
        for container in [
            ID.to_owned(),
            format!("cri-containerd-{ID}.scope"),
            format!("crio-{ID}"),
            format!("crio-{ID}.scope"),
            format!("docker-{ID}.scope"),
        ] {
            let path = format!("{pod}/{container}");
            assert_eq!(shown(&path), format!("container of {UID}"), "{path}");
            // What a container makes of its own cgroup says nothing: it might run a kubelet.
            assert_eq!(shown(&format!("{path}/container")), "-");
            assert_eq!(shown(&format!("{path}/kubepods/pod{UID}")), "-");
        }
        assert_eq!(shown(&format!("{pod}/crio-conmon-{ID}.scope")), "-");
    }
}

#[test]
fn the_way_to_pods_is_followed_and_no_other() {
    for (path, expected) in [
        ("/", "way"),
        ("/kubepods.slice", "way"),
        ("/kubepods.slice/kubepods-besteffort.slice", "way"),
        ("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice", "way"),
        ("/docker/0123/kubelet/kubepods/burstable", "way"),
        ("/system.slice", "way"),
        ("/system.slice/containerd.service", "-"),
        ("/system.slice/docker-0123.scope/kubelet.slice", "-"),
        ("/user.slice/user-0.slice", "-"),
        ("/one/two/three/four", "way"),
        ("/one/two/three/four/five", "-"),
        ("/kubepods/burstable/other", "-"),
        ("/kubepods/other", "-"),
        ("/kubepods/pod", "-"),
        ("/kubepods/pod../x", "-"),
        ("/kubepods/pod0f974531-63b9-45c0-b5ed-377d4e981b7", "-"),
        ("/kubepods/pod0F974531-63B9-45C0-B5ED-377D4E981B72", "-"),
        ("/kubepods/burstable/besteffort/pod0f974531-63b9-45c0-b5ed-377d4e981b72", "-"),
        ("/pod0f974531-63b9-45c0-b5ed-377d4e981b72", "way"),
    ] {
        assert_eq!(shown(path), expected, "{path}");
    }
}
