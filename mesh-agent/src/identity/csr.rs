//! A key of one's own, and the request to have it certified.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Refusal, Svid};
use crate::model::{Identity, Reason};

/// A new key and the request for its certificate (PKCS #10, RFC 2986).
///
/// The key exists in this memory only, and is overwritten when the request is dropped, or the [`Svid`] that it becomes.
/// rcgen's own copy is overwritten before [`Request::new`] returns. What rustls signs with is AWS-LC's copy, which AWS-LC
/// overwrites when the last configuration that holds it is dropped.
#[derive(Debug)]
pub struct Request {
    identity: Identity,
    key: PrivateKeyDer<'static>,
    der: CertificateSigningRequestDer<'static>,
    pem: String,
}

impl Request {
    /// Makes a P-256 key and has it ask for `identity`, the only subject alternative name; the subject is empty.
    ///
    /// # Errors
    /// No random numbers ([`Reason::Internal`]).
    pub fn new(identity: &Identity) -> Result<Self, Refusal> {
        Self::make(identity).map_err(|error| Refusal {
            reason: Reason::Internal,
            message: format!("no certificate signing request could be made: {error}"),
            is_transient: true,
        })
    }

    fn make(identity: &Identity) -> Result<Self, rcgen::Error> {
        let pair = Zeroizing::new(KeyPair::generate()?);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        let request = params.serialize_request(&*pair)?;
        let key = PrivatePkcs8KeyDer::from(pair.serialized_der().to_vec()).into();
        Ok(Self { identity: identity.clone(), key, pem: request.pem()?, der: request.into() })
    }

    /// As DER, for the SPIFFE Workload API's relatives and the authority in this process.
    pub fn der(&self) -> &CertificateSigningRequestDer<'static> {
        &self.der
    }

    /// As PEM, for `istio.v1.auth.IstioCertificateService`.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// With the chain that was answered, leaf first, without the root. Whether it belongs to the key is checked where the
    /// certificate is put to use.
    pub fn answered(mut self, chain: Vec<CertificateDer<'static>>) -> Svid {
        let nothing = PrivatePkcs8KeyDer::from(Vec::new()).into();
        let key = std::mem::replace(&mut self.key, nothing);
        Svid { identity: self.identity.clone(), chain, key }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::{
        certification_request::X509CertificationRequest,
        extensions::GeneralName,
        prelude::{FromDer as _, ParsedExtension},
    };

    use super::*;

    #[test]
    fn a_request_asks_for_the_identity_and_nothing_else() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let request = Request::new(&identity).unwrap();
        let (_, read) = X509CertificationRequest::from_der(request.der()).unwrap();
        read.verify_signature().unwrap();
        let names = requested_names(&read);
        assert_eq!(names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]);
        assert_eq!(read.certification_request_info.subject.iter().count(), 0);
        assert!(request.pem().starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
    }

    #[test]
    fn each_request_has_a_key_of_its_own() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let key = || Request::new(&identity).unwrap().answered(Vec::new()).key.secret_der().to_vec();
        assert_ne!(key(), key());
    }

    fn requested_names<'a>(read: &'a X509CertificationRequest<'a>) -> Vec<GeneralName<'a>> {
        read.requested_extensions()
            .unwrap()
            .flat_map(|extension| match extension {
                ParsedExtension::SubjectAlternativeName(names) => names.general_names.clone(),
                other => panic!("{other:?} was not asked for"),
            })
            .collect()
    }
}
