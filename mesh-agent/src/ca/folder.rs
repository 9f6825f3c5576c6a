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
    time::SystemTime,
};

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{
    Error, Lifetimes,
    certificate::{SKEW, Signer, Validity, is_self_signed},
    pem,
    roots::{Phase, phase, wants_next},
};

/// Files of a given intermediate: certificate and what links it to the root, key, roots.
const GIVEN: [[&str; 3]; 2] = [["tls.crt", "tls.key", "ca.crt"], ["ca-cert.pem", "ca-key.pem", "root-cert.pem"]];

const ROOT: [&str; 2] = ["root-cert.pem", "root-key.pem"];
const NEXT: [&str; 2] = ["next-cert.pem", "next-key.pem"];
const BUNDLE: &str = "bundle.pem";
const LOCK: &str = "lock";

/// What an authority makes in its folder.
pub const FILES: [&str; 6] = [ROOT[0], ROOT[1], NEXT[0], NEXT[1], BUNDLE, LOCK];

/// What an authority signs with.
pub(super) enum Material {
    /// Roots of its own.
    Own { current: Box<Signer>, next: Option<Box<Signer>> },
    /// A certificate that somebody else signed, what links it to a root, and the roots.
    Given { signer: Box<Signer>, chain: Vec<CertificateDer<'static>>, roots: Vec<CertificateDer<'static>> },
}

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
        if let Some(given) = self.given()? {
            return Ok(given);
        }
        if !self.has(ROOT[0]) {
            let root = make_root(trust_domain, lifetimes, now)?;
            self.store(ROOT, &root)?;
            tracing::info!(folder = %self.path.display(), "made a root for {trust_domain}");
        }
        self.finish_promotion()?;
        let (mut current, mut next) = (Box::new(self.signer(ROOT)?), None);
        if self.has(NEXT[0]) {
            next = Some(Box::new(self.signer(NEXT)?));
        } else if lock.is_some() && wants_next(&current.validity, now) {
            next = Some(Box::new(self.announce_next(trust_domain, lifetimes, now)?));
        }
        if lock.is_some() && next.as_ref().is_some_and(|next| phase(&next.validity, lifetimes, now) == Phase::Done) {
            self.promote()?;
            tracing::info!(folder = %self.path.display(), "the old root is trusted no more");
            if let Some(next) = next.take() {
                current = next;
            }
        }
        Ok(Material::Own { current, next })
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

    fn given(&self) -> Result<Option<Material>, Error> {
        let Some([certificate, key, roots]) = GIVEN.into_iter().find(|[certificate, ..]| self.has(certificate)) else {
            return Ok(None);
        };
        let mut chain = self.certificates(certificate)?;
        let signer = Signer::new(chain.remove(0), self.key(key)?)
            .map_err(|why| self.unusable(certificate, &why, "give a CA certificate and the key that belongs to it"))?;
        chain.insert(0, signer.certificate.clone());
        chain.retain(|certificate| !is_self_signed(certificate));
        let roots = self.certificates(roots)?;
        Ok(Some(Material::Given { signer: Box::new(signer), chain, roots }))
    }

    fn signer(&self, [certificate, key]: [&str; 2]) -> Result<Signer, Error> {
        let first = self.certificates(certificate)?.remove(0);
        Signer::new(first, self.key(key)?).map_err(|why| {
            self.unusable(certificate, &why, "restore the pair from a backup, or remove both for a new root")
        })
    }

    /// At least one.
    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let bytes = fs::read(self.path.join(name)).map_err(|source| self.io("read", name, source))?;
        pem::read_certificates(&bytes).map_err(|why| self.unusable(name, &why, "give certificates in PEM"))
    }

    fn key(&self, name: &str) -> Result<KeyPair, Error> {
        let bytes =
            zeroize::Zeroizing::new(fs::read(self.path.join(name)).map_err(|source| self.io("read", name, source))?);
        let read = || {
            let der = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| error.to_string())?;
            KeyPair::try_from(&der).map_err(|error| error.to_string())
        };
        read().map_err(|why| self.unusable(name, &why, "give a private key in PEM (PKCS#8)"))
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
        if self.has(NEXT[0]) && !self.has(NEXT[1]) && self.signer([NEXT[0], ROOT[1]]).is_ok() {
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

    fn has(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }

    fn io(&self, doing: &'static str, name: &str, source: io::Error) -> Error {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        Error::Io { doing, path, source }
    }

    fn unusable(&self, name: &str, why: &str, remedy: &'static str) -> Error {
        Error::Unusable { path: self.path.join(name), why: why.to_owned(), remedy }
    }
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

fn make_root(trust_domain: &str, lifetimes: &Lifetimes, now: SystemTime) -> Result<Signer, Error> {
    let validity = Validity { from: now - SKEW, until: now + lifetimes.root };
    Signer::root(trust_domain, validity).map_err(Error::Crypto)
}
