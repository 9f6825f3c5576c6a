//! What an authority signs with, read from named files: of a folder, or of a Secret.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

use super::{
    Error, Lifetimes,
    certificate::{Signer, is_self_signed},
    pem,
    roots::{Phase, phase},
};

/// Files of a given intermediate: certificate and what links it to the root, key, roots.
pub(super) const GIVEN: [[&str; 3]; 2] =
    [["tls.crt", "tls.key", "ca.crt"], ["ca-cert.pem", "ca-key.pem", "root-cert.pem"]];

/// Certificate and key of the root.
pub(super) const ROOT: [&str; 2] = ["root-cert.pem", "root-key.pem"];
/// Certificate and key of the root that replaces it.
pub(super) const NEXT: [&str; 2] = ["next-cert.pem", "next-key.pem"];

/// What an authority signs with.
#[derive(Clone)]
pub(super) enum Material {
    /// Roots of its own.
    Own { current: Arc<Signer>, next: Option<Arc<Signer>> },
    /// A certificate that somebody else signed, what links it to a root, and the roots.
    Given { signer: Arc<Signer>, chain: Vec<CertificateDer<'static>>, roots: Vec<CertificateDer<'static>> },
}

impl Material {
    /// Whom to trust.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        match self {
            Self::Own { current, next } => {
                std::iter::once(current).chain(next).map(|root| root.certificate.clone()).collect()
            }
            Self::Given { roots, .. } => roots.clone(),
        }
    }

    /// Whether the next root can take the place of the root.
    pub(super) fn is_replaced(&self, lifetimes: &Lifetimes, now: SystemTime) -> bool {
        match self {
            Self::Own { next: Some(next), .. } => phase(&next.validity, lifetimes, now) == Phase::Done,
            Self::Own { next: None, .. } | Self::Given { .. } => false,
        }
    }
}

/// Where the files are.
pub(super) trait Files {
    /// Whether there is such a file.
    fn has(&self, name: &str) -> bool;

    /// Its content.
    fn read(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, Error>;

    /// How it is called in errors.
    fn place(&self, name: &str) -> PathBuf;
}

/// The intermediate that was given, if one was.
pub(super) fn given(files: &impl Files) -> Result<Option<Material>, Error> {
    let Some([certificate, key, roots]) = GIVEN.into_iter().find(|[certificate, ..]| files.has(certificate)) else {
        return Ok(None);
    };
    let mut chain = certificates(files, certificate)?;
    let signer = Signer::new(chain.remove(0), private_key(files, key)?)
        .map_err(|why| unusable(files, certificate, &why, "give a CA certificate and the key that belongs to it"))?;
    chain.insert(0, signer.certificate.clone());
    chain.retain(|certificate| !is_self_signed(certificate));
    let roots = certificates(files, roots)?;
    Ok(Some(Material::Given { signer: Arc::new(signer), chain, roots }))
}

/// A root and its key.
pub(super) fn signer(files: &impl Files, [certificate, key]: [&str; 2]) -> Result<Signer, Error> {
    let first = certificates(files, certificate)?.remove(0);
    Signer::new(first, private_key(files, key)?).map_err(|why| {
        unusable(files, certificate, &why, "restore the pair from a backup, or remove both for a new root")
    })
}

/// At least one.
fn certificates(files: &impl Files, name: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = files.read(name)?;
    pem::read_certificates(&bytes).map_err(|why| unusable(files, name, &why, "give certificates in PEM"))
}

fn private_key(files: &impl Files, name: &str) -> Result<KeyPair, Error> {
    let bytes = files.read(name)?;
    let read = || {
        let der = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| error.to_string())?;
        KeyPair::try_from(&der).map_err(|error| error.to_string())
    };
    read().map_err(|why| unusable(files, name, &why, "give a private key in PEM (PKCS#8)"))
}

fn unusable(files: &impl Files, name: &str, why: &str, remedy: &'static str) -> Error {
    Error::Unusable { path: files.place(name), why: why.to_owned(), remedy }
}
