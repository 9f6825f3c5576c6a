//! What bench and demo share: nodes and pods as network namespaces, processes in them whose CPU time is accounted for,
//! the load tool, the agent. Everything that is made is unmade on drop, ctrl-C included.

pub(crate) mod accounts;
pub(crate) mod agent;
pub(crate) mod cluster;
pub(crate) mod interrupt;
pub(crate) mod kubelet;
pub(crate) mod load;
pub(crate) mod manifests;
pub(crate) mod network;
pub(crate) mod process;

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
};

use crate::{
    command::{cargo, root, run},
    ebpf,
};

/// A folder below `target` for the files of a run, with a bpffs in it, so that pins don't meet those of an agent that
/// serves this machine. One run at a time.
pub(crate) struct Workspace {
    path: PathBuf,
    bpffs: PathBuf,
    _lock: Flock<fs::File>,
}

impl Workspace {
    /// Makes or cleans it.
    ///
    /// # Errors
    /// Another run is under way.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let path = root().join("target").join(name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        let lock = fs::File::create(path.join("lock"))?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
            bail!("another cargo xtask {name} is running (it holds {})", path.join("lock").display());
        };
        let bpffs = path.join("bpf");
        // Mounted still if the last run was killed.
        let _gone = umount2(&bpffs, MntFlags::MNT_DETACH);
        for entry in fs::read_dir(&path)? {
            let entry = entry?.path();
            if entry.is_dir() {
                fs::remove_dir_all(&entry)?;
            } else if entry.file_name() != Some(OsStr::new("lock")) {
                fs::remove_file(&entry)?;
            }
        }
        fs::create_dir(&bpffs)?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a bpffs on {}", bpffs.display()))?;
        Ok(Self { path, bpffs, _lock: lock })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The bpffs in it.
    pub(crate) fn bpffs(&self) -> &Path {
        &self.bpffs
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _gone = umount2(&self.bpffs, MntFlags::MNT_DETACH);
    }
}

/// Fails unless we are root.
///
/// # Errors
/// We are not.
pub(crate) fn require_root(verb: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("cargo xtask {verb} makes network namespaces and loads eBPF: run it as root");
    }
    Ok(())
}

/// The agent's package and binary.
pub(crate) const AGENT: (&str, &str) = ("mesh-agent", "mesh-agent");

/// Builds the load tool and these binaries of these packages for release, all in one call so that they share their
/// dependencies, and returns the folder they are in.
///
/// # Errors
/// They don't build.
pub(crate) fn build(more: &[(&str, &str)]) -> Result<PathBuf> {
    let mut args = vec!["build", "--release"];
    let binaries = [&[("xtask", "mesh-load")], more].concat();
    for (package, binary) in &binaries {
        args.extend(["--package", package, "--bin", binary]);
    }
    let names: Vec<_> = binaries.iter().map(|(_, binary)| *binary).collect();
    eprintln!("building {} (release)", names.join(", "));
    let mut build = cargo(&args);
    if !more.is_empty() {
        // A stub would start, and capture nothing.
        build.env(ebpf::MESH_EBPF, "build");
    }
    run(&mut build)?;
    Ok(ebpf::target_folder()?.join("release"))
}

/// Fails, with the remedy, unless `program` is on the path.
///
/// # Errors
/// It isn't.
pub(crate) fn require(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // Debian leaves these out of some shells' paths.
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is missing: apt-get install -y --no-install-recommends {package}"))
}

/// Asks again and again until there is an answer. For what other programs do and don't tell.
///
/// # Errors
/// `what` did not happen within `patience`; asking failed; ctrl-C.
pub(crate) fn poll<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        interrupt::check()?;
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if start.elapsed() > patience {
            bail!("{what}: not after {patience:?}");
        }
        pause(Duration::from_millis(5));
    }
}

/// Lets time pass, as a part of a measurement.
///
/// # Errors
/// Ctrl-C.
pub(crate) fn rest(length: Duration) -> Result<()> {
    let until = Instant::now() + length;
    while Instant::now() < until {
        interrupt::check()?;
        pause(length.min(Duration::from_millis(50)));
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "other programs' states can be asked for, not awaited")]
fn pause(length: Duration) {
    std::thread::sleep(length);
}
