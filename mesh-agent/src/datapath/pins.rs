//! Names of the pins: `<bpffs>/mesh-agent/v<ABI>/{map_NAME,link_PROGRAM,netns_COOKIE}`.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use mesh_common::ABI_VERSION;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

use super::Error;

/// BPF_FS_MAGIC (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11_u32 as _);

/// The directory of the pins.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

/// One agent per pin folder, whatever its run folder: two would adopt each other's maps and links. Held until dropped.
#[derive(Debug)]
pub(super) struct PinLock {
    _folder: Flock<File>,
}

impl PinLock {
    /// Locks the folder of all pins below `bpffs`, making it if need be.
    pub(super) fn acquire(bpffs: &Path) -> Result<Self, Error> {
        let root = Pins::root(bpffs);
        let fail = |source| Error::Pin { path: root.clone(), source };
        // `cleanup` removes the folder under its lock: a lock on a removed folder keeps nobody away, so look again.
        for _ in 0..16 {
            fs::create_dir_all(&root).map_err(fail)?;
            if let Some(lock) = Self::acquire_existing(bpffs)? {
                return Ok(lock);
            }
        }
        Err(fail(io::Error::other("the folder keeps being removed")))
    }

    /// Locks the folder if there is one.
    pub(super) fn acquire_existing(bpffs: &Path) -> Result<Option<Self>, Error> {
        let root = Pins::root(bpffs);
        let fail = |source| Error::Pin { path: root.clone(), source };
        let file = match File::open(&root) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let folder = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Error::Held { path: root.clone() },
            errno => fail(errno.into()),
        })?;
        let ours = folder.metadata().map_err(fail)?.ino();
        Ok(fs::metadata(&root).is_ok_and(|now| now.ino() == ours).then_some(Self { _folder: folder }))
    }
}

impl Pins {
    /// Mounts bpffs where none is mounted, and says whether it did.
    pub(super) fn mount(bpffs: &Path) -> Result<bool, Error> {
        let fail = |source| Error::Bpffs { path: bpffs.to_owned(), source };
        fs::create_dir_all(bpffs).map_err(fail)?;
        if is_bpffs(bpffs) {
            return Ok(false);
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), bpffs, Some("bpf"), flags, None::<&str>).map_err(|errno| fail(errno.into()))?;
        tracing::info!(path = %bpffs.display(), "mounted bpffs");
        Ok(true)
    }

    /// Where they are.
    pub fn at(bpffs: &Path) -> Self {
        Self { directory: Self::root(bpffs).join(format!("v{ABI_VERSION}")) }
    }

    /// Makes the directory.
    pub(super) fn prepare(bpffs: &Path) -> Result<Self, Error> {
        let pins = Self::at(bpffs);
        fs::create_dir_all(&pins.directory).map_err(|source| Error::Pin { path: pins.directory.clone(), source })?;
        Ok(pins)
    }

    /// Everything that an agent of any version pins is below this.
    pub fn root(bpffs: &Path) -> PathBuf {
        bpffs.join("mesh-agent")
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Pin of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(format!("map_{name}"))
    }

    /// Pin of a cgroup program's link.
    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.directory.join(format!("link_{program}"))
    }

    /// Pin of the link to a network namespace.
    pub(super) fn netns_link(&self, cookie: u64) -> PathBuf {
        self.directory.join(format!("netns_{cookie}"))
    }

    /// Cookies of the namespaces that have a pinned link.
    pub(super) fn netns_cookies(&self) -> io::Result<Vec<u64>> {
        let mut cookies = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            if let Some(cookie) = entry?.file_name().to_str().and_then(|n| n.strip_prefix("netns_")?.parse().ok()) {
                cookies.push(cookie);
            }
        }
        Ok(cookies)
    }
}

/// Whether a BPF file system is mounted at the path.
pub(super) fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Removes a pin; that there is none is fine.
pub(super) fn unpin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Pin { path: path.to_owned(), source }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_do_not_get_the_same_pins_and_a_removed_folder_is_made_anew() {
        let bpffs = tempfile::tempdir().unwrap();
        assert!(PinLock::acquire_existing(bpffs.path()).unwrap().is_none());
        let lock = PinLock::acquire(bpffs.path()).unwrap();
        let error = PinLock::acquire(bpffs.path()).unwrap_err();
        assert!(matches!(&error, Error::Held { .. }) && error.to_string().contains("--bpffs"), "{error}");
        fs::remove_dir(Pins::root(bpffs.path())).unwrap();
        let other = PinLock::acquire(bpffs.path()).unwrap();
        drop(lock);
        assert!(PinLock::acquire_existing(bpffs.path()).is_err(), "the other one's");
        drop(other);
        assert!(PinLock::acquire_existing(bpffs.path()).unwrap().is_some());
    }
}
