//! The authority itself: what it signs, with what, and who is to be trusted.

use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rcgen::{PublicKeyData, SanType};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::{
    Error, Lifetimes,
    certificate::{self, SKEW, Signer, Validity},
    csr,
    folder::Folder,
    material::Material,
    roots::{Phase, phase, wants_intermediate},
};
use crate::{
    identity::{Refusal, TrustBundle},
    model::{Identity, Reason},
};

/// A certificate that was just signed.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf first, then intermediates, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the leaf.
    pub validity: Validity,
}

/// A certificate authority.
pub struct Authority {
    trust_domain: Arc<str>,
    lifetimes: Lifetimes,
    kept: Kept,
    signing: RwLock<Arc<Signing>>,
    bundle: watch::Sender<Arc<TrustBundle>>,
}

/// Where its root or intermediate is kept.
enum Kept {
    /// In a folder that it reads.
    Folder(Folder),
    /// Wherever it was put from.
    Given(RwLock<Material>),
}

/// What signs now.
struct Signing {
    signer: Arc<Signer>,
    /// From the signer's certificate to below the root.
    chain: Vec<CertificateDer<'static>>,
    /// What the signer was signed by; itself if it was given.
    parent: CertificateDer<'static>,
    roots: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// Opens the folder, and makes a root in it if there is nothing to sign with.
    pub fn open(folder: &Path, trust_domain: &str, lifetimes: Lifetimes, now: SystemTime) -> Result<Self, Error> {
        let folder = Folder::new(folder);
        let material = folder.open(trust_domain, &lifetimes, now)?;
        folder.publish(&material.roots())?;
        Self::start(Kept::Folder(folder), material, trust_domain, lifetimes, now)
    }

    /// With what somebody else reads, and [`Self::put`]s when it changes.
    pub(super) fn of(
        material: Material,
        trust_domain: &str,
        lifetimes: Lifetimes,
        now: SystemTime,
    ) -> Result<Self, Error> {
        Self::start(Kept::Given(RwLock::new(material.clone())), material, trust_domain, lifetimes, now)
    }

    fn start(
        kept: Kept,
        material: Material,
        trust_domain: &str,
        lifetimes: Lifetimes,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let signing = Arc::new(Signing::next(None, material, trust_domain, &lifetimes, now)?);
        let (bundle, _) = watch::channel(Arc::new(TrustBundle { roots: signing.roots.clone() }));
        Ok(Self { trust_domain: trust_domain.into(), lifetimes, kept, signing: RwLock::new(signing), bundle })
    }

    /// Looks into the folder again: other roots, a next root, time for another intermediate. To be called every minute
    /// or so; after an error everything stays as it is.
    pub fn refresh(&self, now: SystemTime) -> Result<(), Error> {
        match &self.kept {
            Kept::Folder(folder) => {
                let material = folder.open(&self.trust_domain, &self.lifetimes, now)?;
                folder.publish(&material.roots())?;
                self.use_from_now(material, now)
            }
            Kept::Given(material) => {
                let material = material.read().unwrap_or_else(PoisonError::into_inner).clone();
                self.use_from_now(material, now)
            }
        }
    }

    /// Signs with this from now on, and trusts its roots. They have to be published before.
    pub(super) fn put(&self, material: Material, now: SystemTime) -> Result<(), Error> {
        if let Kept::Given(kept) = &self.kept {
            *kept.write().unwrap_or_else(PoisonError::into_inner) = material.clone();
        }
        self.use_from_now(material, now)
    }

    fn use_from_now(&self, material: Material, now: SystemTime) -> Result<(), Error> {
        let next = Signing::next(Some(&self.signing()), material, &self.trust_domain, &self.lifetimes, now)?;
        let bundle = TrustBundle { roots: next.roots.clone() };
        *self.signing.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        self.bundle.send_if_modified(|old| {
            let has_changed = **old != bundle;
            if has_changed {
                *old = Arc::new(bundle);
            }
            has_changed
        });
        Ok(())
    }

    /// Makes the root that is to replace the present one in its folder, unless that is under way.
    pub fn replace_root(&self, now: SystemTime) -> Result<(), Error> {
        if let Kept::Folder(folder) = &self.kept {
            folder.replace_root(&self.trust_domain, &self.lifetimes, now)?;
        }
        self.refresh(now)
    }

    /// Who is to be trusted, now and as it changes.
    pub fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.subscribe()
    }

    /// When the last of the roots that are trusted expires.
    pub fn root_expiry(&self) -> Option<SystemTime> {
        let bundle = Arc::clone(&self.bundle.borrow());
        let read = bundle.roots.iter().filter_map(|root| certificate::read(root).ok());
        read.map(|root| certificate::validity_of(&root).until).max()
    }

    /// When what signs now expires.
    pub fn signer_expiry(&self) -> SystemTime {
        self.signing().signer.validity.until
    }

    /// Whose identities it vouches for.
    pub fn trust_domain(&self) -> &Arc<str> {
        &self.trust_domain
    }

    /// Signs a request (PEM or DER) for `identity`. `validity` is what was asked for; it is cut to what is allowed, and
    /// `None` is that. Whether the caller may have the identity is for the caller to know.
    ///
    /// # Errors
    /// As [`csr::read`]; [`Reason::CaWrongIdentity`] for another trust domain; [`Reason::CaExpired`] if nothing signed
    /// now would be valid.
    pub fn sign(
        &self,
        csr: &[u8],
        identity: &Identity,
        validity: Option<Duration>,
        now: SystemTime,
    ) -> Result<Issued, Refusal> {
        if identity.trust_domain != self.trust_domain {
            let message = format!("{identity} is not of the trust domain {}", self.trust_domain);
            return Err(Refusal { reason: Reason::CaWrongIdentity, message, is_transient: false });
        }
        let key = csr::read(csr, identity)?;
        self.issue(validity, now, |signer, validity| signer.leaf(identity, &key, validity))
    }

    /// A certificate for the authority's own listener, with any names.
    pub(super) fn sign_own(
        &self,
        names: Vec<SanType>,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Issued, Refusal> {
        self.issue(None, now, |signer, validity| signer.named_leaf(names, key, validity))
    }

    fn issue(
        &self,
        asked: Option<Duration>,
        now: SystemTime,
        sign: impl FnOnce(&Signer, Validity) -> Result<CertificateDer<'static>, rcgen::Error>,
    ) -> Result<Issued, Refusal> {
        let signing = self.signing();
        let by = signing.signer.validity;
        if !by.holds(now) {
            let message = "the authority's certificate is not valid now".to_owned();
            return Err(Refusal { reason: Reason::CaExpired, message, is_transient: true });
        }
        let length =
            asked.filter(|asked| !asked.is_zero()).map_or(self.lifetimes.leaf, |asked| asked.min(self.lifetimes.leaf));
        let validity = Validity { from: by.from.max(now - SKEW), until: by.until.min(now + length) };
        let leaf = sign(&signing.signer, validity).map_err(|error| Refusal {
            reason: Reason::Internal,
            message: format!("cannot sign: {error}"),
            is_transient: true,
        })?;
        Ok(Issued { chain: std::iter::once(leaf).chain(signing.chain.iter().cloned()).collect(), validity })
    }

    fn signing(&self) -> Arc<Signing> {
        Arc::clone(&self.signing.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Signing {
    /// Decides what signs from now on; keeps the intermediate in use while it is good.
    fn next(
        old: Option<&Self>,
        material: Material,
        trust_domain: &str,
        lifetimes: &Lifetimes,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let roots = material.roots();
        let (current, next) = match material {
            Material::Own { current, next } => (current, next),
            Material::Given { signer, chain, .. } => {
                let parent = signer.certificate.clone();
                return Ok(Self { signer, chain, parent, roots });
            }
        };
        let root = match next {
            Some(next) if phase(&next.validity, lifetimes, now) != Phase::Announced => next,
            _ => current,
        };
        if let Some(old) = old
            && old.parent == root.certificate
            && !wants_intermediate(&old.signer.validity, now)
        {
            return Ok(Self {
                signer: Arc::clone(&old.signer),
                chain: old.chain.clone(),
                parent: old.parent.clone(),
                roots,
            });
        }
        let from = root.validity.from.max(now - SKEW);
        let validity = Validity { from, until: root.validity.until.min(now + lifetimes.intermediate) };
        let signer = Arc::new(root.intermediate(trust_domain, validity).map_err(Error::Crypto)?);
        Ok(Self { chain: vec![signer.certificate.clone()], signer, parent: root.certificate.clone(), roots })
    }
}
