//! A network namespace without a node, for root or in a user namespace of one's own.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use crate::require;

/// Set in the process that runs inside a user namespace.
const INSIDE: &str = "MESH_TEST_SANDBOX";

/// Runs `work` in a new network namespace with loopback up. Where that takes a user namespace, the test runs itself
/// again in one: `name` is the test's own. Skips where neither can be had.
///
/// # Panics
/// When `work` does, or the tier is required and cannot run.
pub fn isolated(name: &str, work: impl FnOnce() + Send) {
    if std::env::var_os(INSIDE).is_some() {
        loopback_up();
        return work();
    }
    if nix::unistd::geteuid().is_root() {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("root may");
                loopback_up();
                work();
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        return;
    }
    let check = Command::new("unshare").args(["--map-root-user", "--net", "true"]).output();
    let can = check.is_ok_and(|output| output.status.success());
    if require("netns", || can.then_some(()).ok_or_else(|| "not root, and no user namespaces".to_owned())) {
        let test = std::env::current_exe().expect("Linux knows");
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net", "--"]).arg(test).args(["--exact", name, "--nocapture"]);
        let output = command.env(INSIDE, "1").output().expect("unshare was there");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn loopback_up() {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("iproute2");
    assert!(status.success());
}
