//! The folder (or mounted Secret) that an authority's certificates and keys are kept in.
//!
//! | files | what |
//! |---|---|
//! | `root-cert.pem`, `root-key.pem` | the root; made if there is nothing else |
//! | `next-cert.pem`, `next-key.pem` | the root that replaces it: trusted at once, signs later |
//! | `tls.crt`, `tls.key`, `ca.crt` | a given intermediate and its root, e.g. from cert-manager: used instead |
//! | `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` | the same as Istio's secret `cacerts` has it |
//! | `bundle.pem` | written: the roots to be trusted now |

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{
    Error, Lifetimes,
    certificate::{SKEW, Signer, Validity},
    material::{Files, Material, NEXT, ROOT, given, signer},
    pem,
    roots::wants_next,
};

const BUNDLE: &str = "bundle.pem";
const LOCK: &str = "lock";

/// What an authority makes in its folder.
pub const FILES: [&str; 6] = [ROOT[0], ROOT[1], NEXT[0], NEXT[1], BUNDLE, LOCK];

/// The folder. Several processes may use it at once.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Reads what is there, makes the first root, moves a change of roots on.
    pub(super) fn open(&self, trust_domain: &str, lifetimes: &Lifetimes, now: SystemTime) -> Result<Material, Error> {
        if !self.path.exists() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
            made.map_err(|source| self.io("make", "", source))?;
        }
        let lock = self.lock()?;
        if let Some(given) = given(self)? {
            return Ok(given);
        }
        if !self.has(ROOT[0]) {
            let root = make_root(trust_domain, lifetimes, now)?;
            self.store(ROOT, &root)?;
            tracing::info!(folder = %self.path.display(), "made a root for {trust_domain}");
        }
        self.finish_promotion()?;
        let (current, mut next) = (Arc::new(signer(self, ROOT)?), None);
        if self.has(NEXT[0]) {
            next = Some(Arc::new(signer(self, NEXT)?));
        } else if lock.is_some() && wants_next(&current.validity, now) {
            next = Some(Arc::new(self.announce_next(trust_domain, lifetimes, now)?));
        }
        let material = Material::Own { current, next };
        if lock.is_some() && material.is_replaced(lifetimes, now) {
            self.promote()?;
            tracing::info!(folder = %self.path.display(), "the old root is trusted no more");
            return Ok(Material::Own { current: Arc::new(signer(self, ROOT)?), next: None });
        }
        Ok(material)
    }

    /// Makes a next root, unless there is one.
    pub(super) fn replace_root(&self, trust_domain: &str, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), Error> {
        let _lock = self.lock()?;
        if self.has(ROOT[0]) && !self.has(NEXT[0]) {
            self.announce_next(trust_domain, lifetimes, now)?;
        }
        Ok(())
    }

    fn announce_next(&self, trust_domain: &str, lifetimes: &Lifetimes, now: SystemTime) -> Result<Signer, Error> {
        let next = make_root(trust_domain, lifetimes, now)?;
        self.store(NEXT, &next)?;
        tracing::info!(folder = %self.path.display(), "made the next root: trusted now, signing after the overlap");
        Ok(next)
    }

    /// Writes the trust bundle, where the folder can be written.
    pub(super) fn publish(&self, roots: &[CertificateDer<'_>]) -> Result<(), Error> {
        let text = pem::certificates(roots);
        if fs::read(self.path.join(BUNDLE)).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        match self.lock()? {
            Some(_lock) => self.write(BUNDLE, text.as_bytes(), 0o644),
            None => Ok(()),
        }
    }

    /// Keeps other processes from the folder until dropped. `None` if it is read-only: then nobody writes it anyway.
    fn lock(&self) -> Result<Option<File>, Error> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let locked = options.open(self.path.join(LOCK)).and_then(|file| file.lock().map(|()| file));
        match locked {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_read_only(&error) => Ok(None),
            Err(source) => Err(self.io("lock", LOCK, source)),
        }
    }

    /// The key first: a certificate without its key would look like a root.
    fn store(&self, [certificate, key]: [&str; 2], signer: &Signer) -> Result<(), Error> {
        self.write(key, signer.key_pem().as_bytes(), 0o600)?;
        self.write(certificate, pem::certificates(std::slice::from_ref(&signer.certificate)).as_bytes(), 0o644)
    }

    /// The next root becomes the root: the key first, and [`Self::finish_promotion`] finds what was cut short.
    fn promote(&self) -> Result<(), Error> {
        self.rename(NEXT[1], ROOT[1])?;
        self.rename(NEXT[0], ROOT[0])
    }

    fn finish_promotion(&self) -> Result<(), Error> {
        if self.has(NEXT[0]) && !self.has(NEXT[1]) && signer(self, [NEXT[0], ROOT[1]]).is_ok() {
            self.rename(NEXT[0], ROOT[0])?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let renamed = fs::rename(self.path.join(from), self.path.join(to)).and_then(|()| self.sync());
        renamed.map_err(|source| self.io("write", to, source))
    }

    /// All or nothing, and on disk when it returns.
    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), Error> {
        let temporary = self.path.join(format!(".{name}.{}", std::process::id()));
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, self.path.join(name))?;
            self.sync()
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&temporary);
            self.io("write", name, source)
        })
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn io(&self, doing: &'static str, name: &str, source: io::Error) -> Error {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        Error::Io { doing, path, source }
    }
}

impl Files for Folder {
    fn has(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }

    fn read(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        fs::read(self.path.join(name)).map(Zeroizing::new).map_err(|source| self.io("read", name, source))
    }

    fn place(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

/// A new root, valid from now.
pub(super) fn make_root(trust_domain: &str, lifetimes: &Lifetimes, now: SystemTime) -> Result<Signer, Error> {
    let validity = Validity { from: now - SKEW, until: now + lifetimes.root };
    Signer::root(trust_domain, validity).map_err(Error::Crypto)
}
