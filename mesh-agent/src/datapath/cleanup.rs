//! Placeholder until the command line is merged.

use std::{io, path::{Path, PathBuf}};

/// Removes every pin.
pub fn cleanup(_bpffs: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(Vec::new())
}
