//! Names of the pins: `<bpffs>/mesh-agent/v<ABI>/{map_NAME,link_PROGRAM,netns_COOKIE}`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mesh_common::ABI_VERSION;
use nix::{
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

impl Pins {
    /// Makes the directory; mounts bpffs where none is mounted, and says whether it did.
    pub(super) fn prepare(bpffs: &Path) -> Result<(Self, bool), Error> {
        let fail = |source| Error::Bpffs { path: bpffs.to_owned(), source };
        fs::create_dir_all(bpffs).map_err(fail)?;
        let mounts = !is_bpffs(bpffs);
        if mounts {
            mount(
                Some("bpf"),
                bpffs,
                Some("bpf"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                None::<&str>,
            )
            .map_err(|errno| fail(errno.into()))?;
            tracing::info!(path = %bpffs.display(), "mounted bpffs");
        }
        let directory = Self::root(bpffs).join(format!("v{ABI_VERSION}"));
        fs::create_dir_all(&directory).map_err(|source| Error::Pin { path: directory.clone(), source })?;
        Ok((Self { directory }, mounts))
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
