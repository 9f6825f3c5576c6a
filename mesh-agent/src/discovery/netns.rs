//! Which of the network namespaces that pods name exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::{object::Object, parse};
use crate::model::{ObjectName, Problem};

/// What there is at the paths.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The namespaces, with their inode.
    pub(super) inodes: BTreeMap<PathBuf, u64>,
    /// Something is there that is no namespace: most likely a mount point that is about to become one.
    pub(super) unfinished: BTreeSet<PathBuf>,
}

/// Looks at the paths.
pub(super) fn find(paths: &BTreeSet<PathBuf>) -> Found {
    let mut found = Found::default();
    for path in paths {
        let Ok(metadata) = path.metadata() else { continue };
        if statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC) {
            // Asked after the file system was: the inode of the mount point before would be another number.
            found.inodes.extend(path.metadata().map(|metadata| (path.clone(), metadata.ino())));
        } else if metadata.is_file() {
            found.unfinished.insert(path.clone());
        }
    }
    found
}

/// The nearest folder above `path` that exists: where something has to happen before `path` can change.
pub(super) fn nearest_folder(path: &Path) -> Option<PathBuf> {
    path.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_owned)
}

/// The pods in the text of the file `path` that name their network namespace by annotation, with its path: for a look
/// at a machine before an agent runs there.
///
/// # Errors
/// The text is not YAML.
pub fn network_namespaces(path: PathBuf, text: &str) -> Result<Vec<(ObjectName, PathBuf)>, Problem> {
    let parsed = parse::file(&Arc::new(path), text)?;
    let pods = parsed.entries.into_iter().filter_map(|entry| match entry.object.as_deref() {
        Some(Object::Pod(pod)) => Some((entry.key.name, pod.settings.netns.as_ref()?.path.clone())),
        _ => None,
    });
    Ok(pods.collect())
}
