//! What the guest has in it.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Payload, cpio::Archive, kernel::Unpacked};
use crate::{
    command::{command, output},
    test::{MESH_AGENT_BIN, MESH_REQUIRE},
};

/// Modules that the tests and the agent may need; those built into the kernel are skipped.
const MODULES: [&str; 9] = ["veth", "bridge", "dummy", "tun", "tls", "sch_netem", "inet_diag", "tcp_diag", "cls_bpf"];

/// Programs of the host that busybox cannot stand in for.
const TOOLS: [&str; 6] = ["ip", "ss", "nsenter", "unshare", "mount", "umount"];

const AGENT: &str = "/opt/mesh/mesh-agent";
const BUSYBOX: &str = "/opt/busybox/busybox";

/// Writes the initramfs. `scratch` is for intermediate files.
///
/// # Errors
/// A file or a program of the host is missing.
pub(crate) fn write(kernel: &Unpacked, payload: &Payload<'_>, scratch: &Path, to: &Path) -> Result<()> {
    let file = fs::File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for folder in ["/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/etc", "/var/tmp"] {
        archive.folder(folder)?;
    }
    let busybox = find_program("busybox").context("busybox is missing; ./xtask/run test --vm installs it")?;
    archive.file(BUSYBOX, &fs::read(busybox)?)?;

    let mut libraries = BTreeSet::new();
    for tool in TOOLS {
        if let Some(path) = find_program(tool) {
            libraries.extend(shared_libraries(&path)?);
            archive.file(&path.to_string_lossy(), &fs::read(&path)?)?;
        }
    }
    let tests = payload.tests.iter().map(|(name, path)| (format!("/opt/mesh/tests/{name}"), Path::new(path)));
    for (place, path) in std::iter::once((AGENT.to_owned(), payload.agent)).chain(tests) {
        libraries.extend(shared_libraries(path)?);
        // Without debug sections, which are most of it: the guest's files are its memory.
        let stripped = scratch.join("stripped");
        output(command("strip", &["--strip-debug", "-o"]).arg(&stripped).arg(path))?;
        archive.file(&place, &fs::read(&stripped)?)?;
    }
    for library in libraries {
        let content = fs::read(&library).with_context(|| format!("cannot read {library}"))?;
        archive.file(&library, &content)?;
    }
    for (index, module) in modules(&kernel.modules)?.iter().enumerate() {
        let path = kernel.modules.join(module);
        let content = match path.extension() {
            Some(extension) if extension == "xz" => unpack_xz(&path)?,
            _ => fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
        };
        // Named in loading order.
        archive.file(&format!("/opt/modules/{index:03}.ko"), &content)?;
    }
    archive.file("/init", init(payload).as_bytes())?;
    archive.finish()?;
    println!("initramfs {:.0} MB", fs::metadata(to)?.len() as f64 / 1e6);
    Ok(())
}

/// The guest's first process: mounts, modules, the tests in turn, power-off.
fn init(payload: &Payload<'_>) -> String {
    let mut script = format!(
        "#!{BUSYBOX} sh
{BUSYBOX} --install -s /opt/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/busybox HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
for module in /opt/modules/*; do insmod $module || echo \"cannot load $module\"; done
ip link set lo up
echo MESH-VM up $(uname -r) after $(cut -d ' ' -f 1 /proc/uptime) s
export {MESH_REQUIRE}=kernel {MESH_AGENT_BIN}={AGENT} RUST_BACKTRACE=1
cd /root
"
    );
    for (name, _) in payload.tests {
        let filter = payload.filter.map_or_else(String::new, |filter| format!(" '{}'", filter.replace('\'', "")));
        // Writing to a String cannot fail.
        let _ = writeln!(script, "echo MESH-VM run {name}\n/opt/mesh/tests/{name} --test-threads=1{filter} </dev/null");
        let _ = writeln!(script, "echo MESH-VM exit $? {name}");
    }
    script.push_str("echo MESH-VM done\npoweroff -f\n");
    script
}

/// The modules to load, in order, as paths below `folder`.
fn modules(folder: &Path) -> Result<Vec<String>> {
    let table = fs::read_to_string(folder.join("modules.dep")).context("depmod left no modules.dep")?;
    Ok(loading_order(&table, &MODULES))
}

/// Each line of `modules.dep` is `PATH: DEPENDENCY...`, all dependencies, the ones to load first last.
fn loading_order(table: &str, wanted: &[&str]) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let line = table
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| path.rsplit('/').next().and_then(|file| file.split('.').next()) == Some(*name));
        let Some((path, dependencies)) = line else { continue };
        for module in dependencies.split_whitespace().rev().chain([path]) {
            if !order.iter().any(|loaded| loaded == module) {
                order.push(module.to_owned());
            }
        }
    }
    order
}

fn unpack_xz(path: &Path) -> Result<Vec<u8>> {
    let mut unpack = command("busybox", &["unxz", "-c"]);
    let unpacked = unpack.arg(path).output().context("cannot start busybox")?;
    anyhow::ensure!(unpacked.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&unpacked.stderr));
    Ok(unpacked.stdout)
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The shared libraries of a program and the loader, with their paths.
fn shared_libraries(program: &Path) -> Result<Vec<String>> {
    let listed = output(command("ldd", &[]).arg(program))?;
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let table = "kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz\n\
                     kernel/net/llc/llc.ko.xz:\n\
                     kernel/net/802/stp.ko.xz: kernel/net/llc/llc.ko.xz\n\
                     kernel/drivers/net/veth.ko.xz:\n";
        let order = loading_order(table, &["veth", "bridge", "stp", "built_in"]);
        assert_eq!(
            order,
            [
                "kernel/drivers/net/veth.ko.xz",
                "kernel/net/llc/llc.ko.xz",
                "kernel/net/802/stp.ko.xz",
                "kernel/net/bridge/bridge.ko.xz"
            ]
        );
    }

    #[test]
    fn a_filter_cannot_break_out_of_its_quotes() {
        let payload =
            Payload { agent: Path::new("a"), tests: &[("t".into(), "p".into())], filter: Some("x'; reboot '") };
        assert!(init(&payload).contains("--test-threads=1 'x; reboot '"), "{}", init(&payload));
    }
}
