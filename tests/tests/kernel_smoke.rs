//! The least that a kernel must offer the agent.

use std::path::Path;

use mesh_tests::require;

fn kernel_tier() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    if mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        Ok(())
    } else {
        Err("no cgroup v2 is mounted".to_owned())
    }
}

#[test]
fn smoke_the_kernel_has_btf() {
    if require("kernel", kernel_tier) {
        assert!(Path::new("/sys/kernel/btf/vmlinux").exists());
    }
}
