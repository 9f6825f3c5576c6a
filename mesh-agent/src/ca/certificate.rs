//! Certificates as the authority makes and reads them.

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls::pki_types::CertificateDer;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};
use zeroize::{Zeroize, Zeroizing};

use crate::model::{Identity, NotAnIdentity};

/// How far clocks may be apart: certificates are valid from this long before they were made.
pub const SKEW: Duration = Duration::from_mins(1);

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub from: SystemTime,
    /// Not after.
    pub until: SystemTime,
}

impl Validity {
    /// Whether `now` is within.
    pub fn holds(&self, now: SystemTime) -> bool {
        self.from <= now && now <= self.until
    }

    /// The instant at which `percent` of it has passed.
    pub fn at_percent(&self, percent: u32) -> SystemTime {
        let length = self.until.duration_since(self.from).unwrap_or_default();
        self.from + length / 100 * percent
    }
}

/// A certificate that may sign others, with its key.
pub(super) struct Signer {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) validity: Validity,
    issuer: Issuer<'static, SecretKey>,
}

/// A key that leaves nothing behind.
struct SecretKey(KeyPair);

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for SecretKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for SecretKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl Signer {
    /// Puts a certificate and its key together.
    ///
    /// # Errors
    /// What is wrong with them: not a CA certificate, or not of this key.
    pub(super) fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, String> {
        let read = read(&certificate)?;
        if !read.is_ca() {
            return Err("the certificate is not one of an authority (CA:TRUE)".to_owned());
        }
        if read.public_key().raw != key.subject_public_key_info() {
            return Err("certificate and key do not belong together".to_owned());
        }
        let validity = validity_of(&read);
        let subject = read.subject().as_raw().to_vec();
        let issuer = Issuer::from_ca_cert_der(&certificate, SecretKey(key)).map_err(|error| error.to_string())?;
        let signer = Self { certificate, validity, issuer };
        // Some names cannot be written again as they were read, and then nobody would trust what is signed.
        let probe =
            signer.issue(&leaf_params("probe", validity), signer.issuer.key()).map_err(|error| error.to_string())?;
        if self::read(&probe)?.issuer().as_raw() != subject {
            return Err("its subject has repeated or unusual parts that cannot be written into certificates".to_owned());
        }
        Ok(signer)
    }

    /// The key as PKCS#8, to be stored.
    pub(super) fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().0.serialize_pem())
    }

    fn issue(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        Ok(params.signed_by(key, &self.issuer)?.into())
    }

    /// A certificate for a workload, with exactly its identity.
    pub(super) fn leaf(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        self.named_leaf(vec![SanType::URI(identity.to_string().try_into()?)], key, validity)
    }

    /// A certificate with any names: the authority's own, for those who call it.
    pub(super) fn named_leaf(
        &self,
        names: Vec<SanType>,
        key: &impl PublicKeyData,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        let mut params = leaf_params("", validity);
        params.subject_alt_names = names;
        params.serial_number = Some(serial()?);
        self.issue(&params, key)
    }

    /// An authority of its own below this one, which can sign leaves only.
    pub(super) fn intermediate(&self, trust_domain: &str, validity: Validity) -> Result<Self, String> {
        let make = || {
            let key = KeyPair::generate()?;
            let params = ca_params("intermediate", trust_domain, BasicConstraints::Constrained(0), validity)?;
            Ok::<_, rcgen::Error>((self.issue(&params, &key)?, key))
        };
        let (certificate, key) = make().map_err(|error| error.to_string())?;
        Self::new(certificate, key)
    }

    /// A root: signed by itself.
    pub(super) fn root(trust_domain: &str, validity: Validity) -> Result<Self, String> {
        let make = || {
            let key = KeyPair::generate()?;
            let params = ca_params("root", trust_domain, BasicConstraints::Unconstrained, validity)?;
            Ok::<_, rcgen::Error>((params.self_signed(&key)?.into(), key))
        };
        let (certificate, key) = make().map_err(|error| error.to_string())?;
        Self::new(certificate, key)
    }
}

/// A leaf for client and server, which is no authority. Without a common name its names become critical (RFC 5280,
/// 4.2.1.6), as the SPIFFE standard wants it.
fn leaf_params(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if !common_name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
    params.not_before = validity.from.into();
    params.not_after = validity.until.into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn ca_params(
    what: &str,
    trust_domain: &str,
    constraints: BasicConstraints,
    validity: Validity,
) -> Result<CertificateParams, rcgen::Error> {
    let serial = serial()?;
    let mut params = CertificateParams::default();
    // Each has its own name, so that a verifier finds the right one of several.
    let mut name = format!("mesh-agent {what} ");
    for byte in serial.as_ref().iter().take(8) {
        let _ = write!(name, "{byte:02x}");
    }
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.serial_number = Some(serial);
    params.not_before = validity.from.into();
    params.not_after = validity.until.into();
    params.is_ca = IsCa::Ca(constraints);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// 127 random bits, so that a serial number is positive in 16 bytes and cannot be foretold.
fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; 16];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Reads a certificate.
///
/// # Errors
/// It is none.
pub(super) fn read<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("something follows the certificate".to_owned()),
        Err(error) => Err(format!("not an X.509 certificate: {error}")),
    }
}

/// When a certificate that was read is valid.
pub(super) fn validity_of(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity { from: validity.not_before.to_datetime().into(), until: validity.not_after.to_datetime().into() }
}

/// Whether it is signed by its own key, going by its names.
pub(super) fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    read(certificate).is_ok_and(|read| read.subject().as_raw() == read.issuer().as_raw())
}

/// The one identity that a certificate proves.
///
/// # Errors
/// It proves none, or several (X509-SVID, section 2).
pub(super) fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, String> {
    let read = read(certificate)?;
    let names = read.subject_alternative_name().map_err(|error| error.to_string())?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|error: NotAnIdentity| error.to_string()),
        (None, _) => Err("it has no URI name".to_owned()),
        (Some(_), Some(_)) => Err("it has several URI names".to_owned()),
    }
}
