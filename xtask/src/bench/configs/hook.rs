//! Other meshes, by an executable that is called with one word: `up` starts it for the pods there are, `down` ends it,
//! `pids` prints its processes, `target` prints the address that the client dials (none: pod B's).

use std::{
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    bench::rig::Rig,
    command::output,
    lab::{accounts::Role, interrupt},
};

/// The executable of that name in one of the folders.
pub(super) fn find(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    folders
        .iter()
        .filter_map(|folder| folder.join(name).canonicalize().ok())
        .find(|path| path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0))
}

/// A mesh that was started. Ended on drop.
pub(super) struct Hook {
    path: PathBuf,
}

impl Hook {
    /// Starts it, and charges its processes to the proxies.
    ///
    /// # Errors
    /// The hook fails.
    pub(super) fn up(path: &Path, rig: &Rig) -> Result<Self> {
        let hook = Self { path: path.to_path_buf() };
        // Not captured: a server that the hook leaves in the background would hold the pipe open.
        let log = rig.workspace.path().join("hook.log");
        let file = std::fs::File::create(&log)?;
        let mut up = Command::new(path);
        up.arg("up").stdout(file.try_clone()?).stderr(file);
        let status = interrupt::spawn(&mut up).with_context(|| path.display().to_string())?.wait()?;
        if !status.success() {
            bail!("{} up: {status}, see {}", path.display(), log.display());
        }
        for pid in hook.pids()? {
            rig.accounts.adopt(Role::Proxy, pid)?;
        }
        Ok(hook)
    }

    /// Its processes.
    ///
    /// # Errors
    /// The hook fails, or prints something else.
    pub(super) fn pids(&self) -> Result<Vec<u32>> {
        let text = self.ask("pids")?;
        let pids = text.split_whitespace().map(str::parse).collect::<Result<_, _>>();
        pids.with_context(|| format!("{} pids said: {text}", self.path.display()))
    }

    /// The address that the client dials, if not pod B's.
    ///
    /// # Errors
    /// The hook fails, or prints something else.
    pub(super) fn target(&self) -> Result<Option<Ipv4Addr>> {
        let text = self.ask("target")?;
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).with_context(|| format!("{} target said: {text}", self.path.display()))
    }

    fn ask(&self, word: &str) -> Result<String> {
        output(Command::new(&self.path).arg(word))
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        if let Err(error) = self.ask("down") {
            eprintln!("{error:#}");
        }
    }
}
