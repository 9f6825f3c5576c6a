//! An initramfs: a cpio archive of the "newc" kind, which the kernel unpacks at boot. Not compressed: unpacking under
//! emulation costs more than loading.

use std::{
    collections::BTreeSet,
    io::{Result, Write},
};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;

/// Writes an archive, with the folders that its files need.
pub(crate) struct Archive<W> {
    out: W,
    written: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, written: BTreeSet::new() }
    }

    /// An empty folder.
    pub(crate) fn folder(&mut self, path: &str) -> Result<()> {
        self.entry(path, DIRECTORY, &[])
    }

    /// An executable file, owned by root. The first file of a path stays.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.entry(path, FILE, content)
    }

    /// Ends the archive and returns what it was written to.
    pub(crate) fn finish(mut self) -> Result<W> {
        self.record("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = path.trim_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.entry(parent, DIRECTORY, &[])?;
        }
        if self.written.insert(path.to_owned()) {
            self.record(path, mode, content)?;
        }
        Ok(())
    }

    /// One header of thirteen hexadecimal numbers, the name and the content, the latter two padded to four bytes.
    fn record(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let too_large = |_| std::io::Error::other(format!("{name} is too large for an initramfs"));
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        let (inode, links) = (u32::try_from(self.written.len()).map_err(too_large)?, 1);
        write!(self.out, "070701")?;
        for number in [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0] {
            write!(self.out, "{number:08X}")?;
        }
        write!(self.out, "{name}\0")?;
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> Result<()> {
        for _ in 0..length.next_multiple_of(4) - length {
            self.out.write_all(b"\0")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_after_its_folders_and_everything_is_aligned() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/usr/bin/x", b"hello").unwrap();
        archive.file("/usr/bin/x", b"again").unwrap();
        archive.folder("/usr").unwrap();
        let bytes = archive.finish().unwrap();

        let text = String::from_utf8(bytes).unwrap();
        let starts: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let names: Vec<_> = starts.iter().map(|at| text[at + 110..].split('\0').next().unwrap_or_default()).collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/x", "TRAILER!!!"]);
        assert!(text.contains("hello\0\0\0"), "{text}");
        assert!(!text.contains("again"), "{text}");
    }
}
