//! The eBPF object: embedded at build time, or another one.

use std::{borrow::Cow, path::Path};

use super::Error;

/// Empty when built without the toolchain (build.rs).
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf"));

/// Whether this binary has the programs in it.
pub fn object_built() -> bool {
    !EMBEDDED.is_empty()
}

/// The object's bytes.
pub(super) fn read(other: Option<&Path>) -> Result<Cow<'static, [u8]>, Error> {
    match other {
        Some(path) => {
            std::fs::read(path).map(Cow::Owned).map_err(|source| Error::Object { path: path.to_owned(), source })
        }
        None if object_built() => Ok(Cow::Borrowed(EMBEDDED)),
        None => Err(Error::NotBuilt),
    }
}
