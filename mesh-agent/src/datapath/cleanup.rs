//! Removal of everything the agent pinned.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Error, Pins, pins::PinLock};

/// Removes the pins below `<bpffs>/mesh-agent` and that folder; what it removed, in order.
///
/// Links go first: unlinking one detaches its program. Symbolic links are not followed, and a pin folder that is one
/// is refused. Nothing there is no error. Pins of a running agent are left alone unless `force` is set.
pub fn cleanup(bpffs: &Path, force: bool) -> Result<Vec<PathBuf>, Error> {
    let root = Pins::root(bpffs);
    // Held to the end, so that no agent adopts half of them.
    let _lock = match PinLock::acquire_existing(bpffs) {
        Err(Error::Held { .. }) if force => None,
        lock => lock?,
    };
    remove(&root).map_err(|source| Error::Pin { path: root, source })
}

fn remove(root: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::symlink_metadata(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.is_dir() => {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is not a folder", root.display())));
        }
        Ok(_) => {}
    }
    let mut found = Found::default();
    collect(root, &mut found)?;
    found.files.sort_by_key(|path| (!is_link_pin(path), path.clone()));
    let mut removed = Vec::new();
    for file in found.files {
        if gone(fs::remove_file(&file))? {
            removed.push(file);
        }
    }
    for folder in found.folders {
        if gone(fs::remove_dir(&folder))? {
            removed.push(folder);
        }
    }
    Ok(removed)
}

#[derive(Default)]
struct Found {
    files: Vec<PathBuf>,
    /// Inner ones first.
    folders: Vec<PathBuf>,
}

fn collect(folder: &Path, found: &mut Found) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), found)?;
        } else {
            found.files.push(entry.path());
        }
    }
    found.folders.push(folder.to_path_buf());
    Ok(())
}

fn is_link_pin(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("link_") || name.starts_with("netns_")
}

/// Whether we removed it; somebody else having done so is fine.
fn gone(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Unmounts a bpffs that holds nothing any more. False if somebody has pins in it.
pub fn unmount(bpffs: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(bpffs)? {
        // The kernel's own, in every bpffs, and not to be removed.
        let name = entry?.file_name();
        if name != "maps.debug" && name != "progs.debug" {
            return Ok(false);
        }
    }
    nix::mount::umount(bpffs)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_only_our_pins_links_first() {
        let bpffs = tempfile::tempdir().unwrap();
        let at = |name: &str| bpffs.path().join(name);
        fs::create_dir_all(at("mesh-agent/v1")).unwrap();
        fs::create_dir_all(at("other")).unwrap();
        let outside = at("other/pin");
        for file in
            ["mesh-agent/v1/netns_7", "mesh-agent/v1/link_connect4", "mesh-agent/v1/AGENT", "other/pin", "maps.debug"]
        {
            fs::write(at(file), "").unwrap();
        }
        std::os::unix::fs::symlink(at("other"), at("mesh-agent/v1/stray")).unwrap();

        let removed = cleanup(bpffs.path(), false).unwrap();
        assert_eq!(removed[..2], [at("mesh-agent/v1/link_connect4"), at("mesh-agent/v1/netns_7")]);
        assert_eq!(removed.last(), Some(&at("mesh-agent")));
        assert!(outside.exists() && at("maps.debug").exists() && !at("mesh-agent").exists());
        assert_eq!(cleanup(bpffs.path(), false).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn refuses_a_pin_folder_that_is_a_symbolic_link() {
        let bpffs = tempfile::tempdir().unwrap();
        let victim = tempfile::tempdir().unwrap();
        fs::write(victim.path().join("precious"), "").unwrap();
        std::os::unix::fs::symlink(victim.path(), bpffs.path().join("mesh-agent")).unwrap();
        assert!(cleanup(bpffs.path(), false).is_err());
        assert!(victim.path().join("precious").exists());
    }
}
