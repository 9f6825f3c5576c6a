//! One agent per run folder: a file lock, which the kernel releases however the holder ends.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::lock_path;

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody holds it.
    #[error("another agent is running{}: it holds {}; stop it first, or give this one its own --run-dir and --bpffs",
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The holder, if it wrote its pid.
        pid: Option<u32>,
    },
    /// The file cannot be used.
    #[error("cannot lock {}: {source}; check that its folder (--run-dir) exists and is writable", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The lock, held until dropped.
#[derive(Debug)]
pub struct RunLock {
    _file: Flock<File>,
}

impl RunLock {
    /// Takes the lock of `run_dir`, making the file if need be, and writes the own pid into it.
    pub fn acquire(run_dir: &Path) -> Result<Self, Error> {
        let path = lock_path(run_dir);
        let io_error = |source| Error::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        // `cleanup` unlinks the file under its lock: a lock on an unlinked file keeps nobody away, so look again.
        for _ in 0..16 {
            let mut file = try_lock(options.open(&path).map_err(io_error)?, &path)?;
            let ours = file.metadata().map_err(io_error)?.ino();
            if std::fs::metadata(&path).is_ok_and(|now| now.ino() == ours) {
                write_pid(&mut file).map_err(io_error)?;
                return Ok(Self { _file: file });
            }
        }
        Err(io_error(io::Error::other("the file keeps being replaced")))
    }

    /// Takes the lock if its file exists.
    pub fn acquire_existing(run_dir: &Path) -> Result<Option<Self>, Error> {
        let path = lock_path(run_dir);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(Some(Self { _file: try_lock(file, &path)? })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { path, source }),
        }
    }
}

fn try_lock(file: File, path: &Path) -> Result<Flock<File>, Error> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(mut file, errno)| {
        if errno == Errno::EWOULDBLOCK {
            Error::Held { path: path.to_path_buf(), pid: read_pid(&mut file) }
        } else {
            Error::Io { path: path.to_path_buf(), source: errno.into() }
        }
    })
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
