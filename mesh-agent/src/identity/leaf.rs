//! What a certificate says.

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use crate::model::{ChainLink, Identity};

/// Why a leaf is not the X.509-SVID of a service account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnSvid {
    /// Not X.509, or with an extension twice.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// Not exactly one URI among the subject alternative names.
    #[error("the certificate has {0} URI names instead of one")]
    Names(usize),
    /// The one URI is not `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    #[error("{0}")]
    NotAnIdentity(#[from] crate::model::NotAnIdentity),
    /// It could vouch for others.
    #[error("the certificate is one of an authority, not of a workload")]
    Authority,
    /// Another trust domain vouches for it.
    #[error("{identity} is not of the trust domain {trust_domain}")]
    TrustDomain {
        /// Who it is there.
        identity: Identity,
        /// The one expected.
        trust_domain: String,
    },
}

/// What is to be known of a leaf.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) identity: Identity,
    pub(super) validity: Validity,
}

/// From and until, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: UnixTime,
    pub(super) until: UnixTime,
}

impl Validity {
    pub(super) fn includes(&self, now: UnixTime) -> bool {
        self.from <= now && now <= self.until
    }

    fn of(certificate: &X509Certificate<'_>) -> Self {
        let seconds = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
        };
        Self { from: seconds(certificate.validity().not_before), until: seconds(certificate.validity().not_after) }
    }
}

/// Reads a leaf. Nothing is verified but its form: that it is an X.509-SVID
/// (<https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>, 2 to 4) of a service account.
pub(super) fn read(leaf: &CertificateDer<'_>) -> Result<Leaf, NotAnSvid> {
    let certificate = parse(leaf)?;
    let unreadable = |error: x509_parser::error::X509Error| NotAnSvid::Unreadable(error.to_string());
    let can_sign = certificate
        .key_usage()
        .map_err(unreadable)?
        .is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign());
    if can_sign || certificate.basic_constraints().map_err(unreadable)?.is_some_and(|basic| basic.value.ca) {
        return Err(NotAnSvid::Authority);
    }
    let names = certificate.subject_alternative_name().map_err(unreadable)?;
    let uris = || {
        names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
    };
    let mut first_two = uris();
    match (first_two.next(), first_two.next()) {
        (Some(uri), None) => Ok(Leaf { identity: uri.parse()?, validity: Validity::of(&certificate) }),
        _ => Err(NotAnSvid::Names(uris().count())),
    }
}

/// When a certificate, of whatever kind, is valid. `None` if it cannot be read.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    parse(certificate).ok().map(|certificate| Validity::of(&certificate))
}

/// For those who ask. `None` if it cannot be read.
pub(super) fn link(der: &CertificateDer<'_>) -> Option<ChainLink> {
    let certificate = parse(der).ok()?;
    let Validity { from, until } = Validity::of(&certificate);
    let subject = match certificate.subject().to_string() {
        empty if empty.is_empty() => read(der).map_or_else(|_| String::new(), |leaf| leaf.identity.to_string()),
        subject => subject,
    };
    let fingerprint = hexadecimal(digest::digest(&digest::SHA256, der).as_ref());
    Some(ChainLink { subject, fingerprint, issued: from.as_secs(), expires: until.as_secs() })
}

/// The serial number, hexadecimal with colons.
pub(super) fn serial(der: &CertificateDer<'_>) -> Option<String> {
    parse(der).ok().map(|certificate| certificate.raw_serial_as_string())
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, NotAnSvid> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(NotAnSvid::Unreadable("something follows it".to_owned())),
        Err(error) => Err(NotAnSvid::Unreadable(error.to_string())),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(u32::from(digit), 16));
        }
        text
    })
}
