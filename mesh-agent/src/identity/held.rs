//! A certificate in use, and what is demanded of one before it is.

use std::{fmt::Display, sync::Arc};

use rustls::{InconsistentKeys, crypto::aws_lc_rs::sign::any_ecdsa_type, pki_types::UnixTime, sign::CertifiedKey};

use super::{
    Refusal, Svid,
    config::{Configs, Maker},
    leaf::{self, Validity},
    verify::{MAX_CHAIN, Trust},
};
use crate::model::{Identity, Reason};

/// A certificate of this node.
pub(super) struct Held {
    /// Chain and key.
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) validity: Validity,
    /// `None` as long as no root is known.
    pub(super) configs: Option<Configs>,
}

impl Held {
    /// Checks what the authority gave for `identity`: that others who trust `trust` will believe it now.
    ///
    /// The key's memory is overwritten when `svid` is dropped, at the end of this.
    pub(super) fn new(
        svid: &mut Svid,
        identity: &Identity,
        trust: &Trust,
        maker: &Maker,
        now: UnixTime,
    ) -> Result<Self, Refusal> {
        let leaf = svid.chain.first().ok_or_else(|| unusable(&"an empty chain"))?;
        let read = leaf::read(leaf).map_err(|why| unusable(&why))?;
        if read.identity != *identity {
            return Err(unusable(&format_args!("it is the one of {}, not of {identity}", read.identity)));
        }
        if svid.chain.len() > MAX_CHAIN {
            return Err(unusable(&format_args!("its chain is longer than {MAX_CHAIN}")));
        }
        if !read.validity.includes(now) {
            let Validity { from, until } = read.validity;
            let (from, until, now) = (from.as_secs(), until.as_secs(), now.as_secs());
            return Err(unusable(&format_args!(
                "it is valid from {from} to {until}, now is {now} (seconds since 1970)"
            )));
        }
        let key = any_ecdsa_type(&svid.key).map_err(|why| unusable(&why))?;
        let certified = Arc::new(CertifiedKey::new(std::mem::take(&mut svid.chain), key));
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(error) => return Err(unusable(&error)),
        }
        let mut held = Self { certified, validity: read.validity, configs: None };
        held.trust(trust, maker, now)?;
        Ok(held)
    }

    /// Puts the certificate under another trust. Without roots it has no configurations.
    ///
    /// # Errors
    /// It does not lead to a root of `trust`: it should be replaced. Until then it is used: others may not have heard.
    pub(super) fn trust(&mut self, trust: &Trust, maker: &Maker, now: UnixTime) -> Result<(), Refusal> {
        self.configs = None;
        let Some(peers) = &trust.peers else { return Ok(()) };
        self.configs = Some(maker.make(&self.certified, peers).map_err(|why| unusable(&why))?);
        peers.verify_own(&self.certified.cert, now).map_err(|why| unusable(&why))
    }
}

fn unusable(why: &dyn Display) -> Refusal {
    Refusal { reason: Reason::CertificateUnusable, message: why.to_string(), is_transient: true }
}
