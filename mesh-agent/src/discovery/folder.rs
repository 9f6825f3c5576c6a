//! The files of a folder: which there are, which changed, and what is in them.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::inotify::AddWatchFlags;
use tokio::time::Instant;

use super::{parse, store::Store, watch::Event};
use crate::model::{Location, Problem, Reason, Severity};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// What a file looked like when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What is known of the folder between two scans.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    known: HashMap<Arc<PathBuf>, Signature>,
    /// To be read whatever they look like: two writes within a tick of the clock look alike.
    dirty: HashSet<PathBuf>,
    /// Somebody has them open and is not done; when to stop waiting for that.
    writing: HashMap<PathBuf, Instant>,
    /// How long a writer is waited for after its last write.
    patience: Duration,
}

impl Folder {
    pub(super) fn new(path: PathBuf, patience: Duration) -> Self {
        Self { path, known: HashMap::new(), dirty: HashSet::new(), writing: HashMap::new(), patience }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Events were lost, or it is another folder now: everything is to be read again.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.writing.clear();
    }

    /// Takes note of an event; returns whether a scan would find anything new because of it.
    pub(super) fn note(&mut self, event: Event, now: Instant) -> bool {
        let Some(path) = event.path else {
            self.forget();
            return true;
        };
        let is_being_written = event.what.contains(AddWatchFlags::IN_MODIFY)
            || (event.what.contains(AddWatchFlags::IN_CREATE) && is_new_file(&path));
        if is_being_written {
            self.writing.insert(path, now + self.patience);
            return false;
        }
        if !event.what.contains(AddWatchFlags::IN_ATTRIB) {
            self.writing.remove(&path);
        }
        self.dirty.insert(path);
        true
    }

    /// Reads what changed into `store`; returns whether anything did.
    ///
    /// # Errors
    /// The folder cannot be listed; then the store is as it was.
    pub(super) fn scan(&mut self, store: &mut Store, now: Instant) -> io::Result<bool> {
        let dirty = std::mem::take(&mut self.dirty);
        self.writing.retain(|_, deadline| *deadline > now);
        let mut present = HashSet::new();
        let mut has_changed = false;
        for path in manifests(&self.path)? {
            match path.metadata() {
                // A folder or a device; opening a pipe would block.
                Ok(metadata) if !metadata.is_file() => continue,
                Ok(metadata) => {
                    let is_known = self.known.get(&path) == Some(&Signature::of(&metadata));
                    let is_due = !is_known || dirty.contains(&*path);
                    if is_due && !self.writing.contains_key(&*path) {
                        has_changed = true;
                        self.read(&path, store);
                    }
                }
                Err(error) => {
                    has_changed = true;
                    self.known.remove(&path);
                    store.put(Arc::clone(&path), Err(unreadable(&path, &error.to_string())));
                }
            }
            present.insert(path);
        }
        self.known.retain(|path, _| present.contains(path));
        has_changed |= store.retain(|path| present.contains(path));
        Ok(has_changed)
    }

    fn read(&mut self, path: &Arc<PathBuf>, store: &mut Store) {
        match read(path) {
            Ok((signature, text)) => {
                self.known.insert(Arc::clone(path), signature);
                let parsed = match text {
                    Ok(text) => parse::file(path, &text),
                    Err(problem) => Err(problem),
                };
                store.put(Arc::clone(path), parsed);
            }
            Err(error) => {
                self.known.remove(path);
                store.put(Arc::clone(path), Err(unreadable(path, &error.to_string())));
            }
        }
    }
}

/// Whether a file that has just appeared was made to be written to, as opposed to linked from elsewhere.
fn is_new_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
}

/// The files of a folder that may hold manifests, sorted by name.
fn manifests(folder: &Path) -> io::Result<Vec<Arc<PathBuf>>> {
    let mut paths = Vec::new();
    for entry in folder.read_dir()? {
        let path = entry?.path();
        // Hidden ones are editors' and kubelet's own.
        let is_hidden = path.file_name().and_then(OsStr::to_str).is_none_or(|name| name.starts_with('.'));
        let is_manifest = path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
        if is_manifest && !is_hidden {
            paths.push(Arc::new(path));
        }
    }
    paths.sort();
    Ok(paths)
}

type Text = Result<String, Problem>;

/// Reads a file, or says why it is none of ours.
fn read(path: &Arc<PathBuf>) -> io::Result<(Signature, Text)> {
    // O_NONBLOCK: should it have become a pipe meanwhile.
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&**path)?;
    let signature = Signature::of(&file.metadata()?);
    if signature.size > MAX_FILE {
        return Ok((signature, Err(too_large(path, signature.size))));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes)? as u64;
    if read > MAX_FILE {
        return Ok((signature, Err(too_large(path, read))));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = good.split(|byte| *byte == b'\n').count();
        file_problem(Reason::BadYaml, path, line, "not UTF-8 text".into(), Reason::BadYaml.remedy())
    });
    Ok((signature, text))
}

fn too_large(path: &Arc<PathBuf>, size: u64) -> Problem {
    let message = format!("{size} bytes; files of up to {MAX_FILE} bytes are read");
    let remedy = "Split the file, or move it elsewhere; until then its last good objects stay in force.";
    file_problem(Reason::SourceUnreadable, path, 0, message, remedy)
}

fn unreadable(path: &Arc<PathBuf>, error: &str) -> Problem {
    let remedy = "Make the file readable to the agent; until then its last good objects stay in force.";
    file_problem(Reason::SourceUnreadable, path, 0, format!("cannot be read: {error}"), remedy)
}

fn file_problem(reason: Reason, path: &Arc<PathBuf>, line: usize, message: String, remedy: &str) -> Problem {
    Problem {
        reason,
        severity: Severity::Error,
        location: Location { file: Some(Arc::clone(path)), line },
        object: String::new(),
        field: String::new(),
        message,
        remedy: remedy.into(),
    }
}
