//! `mesh-agent cleanup`.

use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::{Bpffs, RunDir, authority, print};
use crate::{
    admin::{lock, lock_path, mounted_path, socket_path},
    ca, datapath,
};

const EXAMPLES: &str = "\
Examples:
  mesh-agent cleanup            after the agent was stopped for good
  mesh-agent cleanup --force    although one is running (its pods go on without the mesh)";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    run_dir: RunDir,
    #[command(flatten)]
    bpffs: Bpffs,
    /// Clean even though an agent is running
    #[arg(long)]
    force: bool,
    /// Then wait for SIGTERM: in a container that would be started again
    #[arg(long)]
    stay: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let removed = clean(&args.run_dir.run_dir, &args.bpffs.bpffs, args.force)?;
    let mut out = String::new();
    for path in &removed {
        let _ = writeln!(out, "removed {}", path.display());
    }
    if removed.is_empty() {
        out.push_str("nothing to clean\n");
    }
    print(&out)?;
    if args.stay {
        loop {
            std::thread::park();
        }
    }
    Ok(0)
}

fn clean(run_dir: &Path, bpffs: &Path, force: bool) -> anyhow::Result<Vec<PathBuf>> {
    // Held to the end, so that no agent starts among the ruins.
    let _lock = match lock::RunLock::acquire_existing(run_dir) {
        Ok(lock) => lock,
        Err(lock::Error::Held { .. }) if force => None,
        Err(error @ lock::Error::Held { .. }) => bail!("{error}, or clean regardless with --force"),
        Err(error) => return Err(error.into()),
    };
    let mut removed = match datapath::cleanup(bpffs, force) {
        Err(error @ datapath::Error::Held { .. }) => bail!("{error}, or clean regardless with --force"),
        removed => {
            removed.with_context(|| format!("cannot remove the pins below {}; are you root?", bpffs.display()))?
        }
    };
    let mounted = mounted_path(run_dir);
    if fs::read(&mounted).is_ok_and(|path| path == bpffs.as_os_str().as_encoded_bytes()) {
        let unmounted = datapath::unmount(bpffs).with_context(|| {
            format!("cannot unmount {}, which the agent had mounted; are you root?", bpffs.display())
        })?;
        if unmounted {
            removed.push(bpffs.to_path_buf());
        }
    }
    for path in run_files(run_dir)? {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove {}; are you root?", path.display()));
            }
        }
    }
    // These fail when others keep files there, and then they are theirs too.
    if fs::remove_dir(run_dir.join(authority::FOLDER)).is_ok() {
        removed.push(run_dir.join(authority::FOLDER));
    }
    if fs::remove_dir(run_dir).is_ok() {
        removed.push(run_dir.to_path_buf());
    }
    Ok(removed)
}

/// The files an agent makes in its run folder, the socket's short-lived names included.
fn run_files(run_dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = vec![socket_path(run_dir), mounted_path(run_dir)];
    files.extend(ca::FILES.iter().map(|name| run_dir.join(authority::FOLDER).join(name)));
    let entries = match fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", run_dir.display())),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("admin.sock."));
        if pid.is_some_and(|pid| pid.parse::<u32>().is_ok()) {
            files.push(entry.path());
        }
    }
    files.push(lock_path(run_dir));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_what_a_dead_agent_left_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let (run_dir, bpffs) = (temp.path().join("run"), temp.path().join("bpf"));
        fs::create_dir_all(bpffs.join("mesh-agent/links")).unwrap();
        fs::write(bpffs.join("mesh-agent/links/connect4"), "").unwrap();
        fs::create_dir(&run_dir).unwrap();
        drop(lock::RunLock::acquire(&run_dir).unwrap());
        for file in ["admin.sock", "admin.sock.77", "admin.sock.mine"] {
            fs::write(run_dir.join(file), "").unwrap();
        }

        let removed = clean(&run_dir, &bpffs, false).unwrap();
        let expected = [
            bpffs.join("mesh-agent/links/connect4"),
            bpffs.join("mesh-agent/links"),
            bpffs.join("mesh-agent"),
            run_dir.join("admin.sock"),
            run_dir.join("admin.sock.77"),
            run_dir.join("lock"),
        ];
        assert_eq!(removed, expected);
        assert!(run_dir.join("admin.sock.mine").exists(), "a stranger's file stays");

        fs::remove_file(run_dir.join("admin.sock.mine")).unwrap();
        assert_eq!(clean(&run_dir, &bpffs, false).unwrap(), std::slice::from_ref(&run_dir));
        assert!(clean(&run_dir, &bpffs, false).unwrap().is_empty(), "nothing to clean");
    }

    #[test]
    fn the_authority_of_the_agent_goes_too() {
        let temp = tempfile::tempdir().unwrap();
        let run_dir = temp.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        drop(lock::RunLock::acquire(&run_dir).unwrap());
        let now = std::time::SystemTime::now();
        let folder = run_dir.join(authority::FOLDER);
        ca::Authority::open(&folder, "cluster.local", ca::Lifetimes::default(), now)
            .unwrap()
            .replace_root(now)
            .unwrap();
        clean(&run_dir, &temp.path().join("bpf"), false).unwrap();
        assert!(!run_dir.exists());
    }

    #[test]
    fn a_running_agent_is_left_alone_unless_forced() {
        let temp = tempfile::tempdir().unwrap();
        let _running = lock::RunLock::acquire(temp.path()).unwrap();
        let error = clean(temp.path(), Path::new("/nonexistent"), false).unwrap_err().to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())) && error.contains("--force"), "{error}");
        assert!(clean(temp.path(), Path::new("/nonexistent"), true).unwrap().contains(&temp.path().join("lock")));
    }
}
