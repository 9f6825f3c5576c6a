//! Certificate signing requests (PKCS#10, RFC 2986): reading one, which decides whether it is signed, and making one.

use rcgen::{CertificateParams, KeyPair, PublicKeyData, SanType, SubjectPublicKeyInfo};
use rustls::pki_types::{CertificateSigningRequestDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use crate::{
    identity::Refusal,
    model::{Identity, Reason},
};

/// Longest request, in bytes, PEM or DER: one with a P-384 key and a long identity has 1,500.
pub const MAX_CSR: usize = 16 * 1024;

/// Reads a request and returns the key that a certificate for `identity` is to carry.
///
/// The request must be signed by its own key, which must be P-256 or P-384. Of the extensions that it asks for only the
/// URI names count: they must be `identity` and nothing else, if there are any. Whatever else it asks for is not given.
/// Pure, and takes any bytes: see docs/TESTING.md for fuzzing it.
///
/// # Errors
/// [`Reason::CaBadRequest`] and [`Reason::CaWrongIdentity`], both final.
pub fn read(csr: &[u8], identity: &Identity) -> Result<SubjectPublicKeyInfo, Refusal> {
    let bad = |message: String| Refusal { reason: Reason::CaBadRequest, message, is_transient: false };
    if csr.len() > MAX_CSR {
        return Err(bad(format!("the request has {} bytes; {MAX_CSR} is the most", csr.len())));
    }
    let der = if csr.trim_ascii_start().starts_with(b"-----BEGIN") {
        CertificateSigningRequestDer::from_pem_slice(csr)
            .map_err(|error| bad(format!("the request is not PEM: {error}")))?
    } else {
        CertificateSigningRequestDer::from(csr)
    };
    let (rest, request) = X509CertificationRequest::from_der(&der)
        .map_err(|error| bad(format!("the request is not PKCS#10: {error}")))?;
    if !rest.is_empty() {
        return Err(bad("something follows the request".to_owned()));
    }
    let info = &request.certification_request_info;
    let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
        .ok()
        .filter(|key| {
            key.algorithm() == &rcgen::PKCS_ECDSA_P256_SHA256 || key.algorithm() == &rcgen::PKCS_ECDSA_P384_SHA384
        })
        .ok_or_else(|| bad("its key is neither P-256 nor P-384".to_owned()))?;
    request.verify_signature().map_err(|_| bad("it is not signed by its own key".to_owned()))?;
    for uri in uri_names(info.iter_attributes().map(x509_parser::cri_attributes::X509CriAttribute::parsed_attribute))
        .map_err(|message| bad(message.to_owned()))?
    {
        if uri != identity.to_string() {
            let message = format!("the request names {uri:?}, asked for is {identity}");
            return Err(Refusal { reason: Reason::CaWrongIdentity, message, is_transient: false });
        }
    }
    Ok(key)
}

/// All URI names that are asked for, in whatever attribute.
fn uri_names<'a>(attributes: impl Iterator<Item = &'a ParsedCriAttribute<'a>>) -> Result<Vec<&'a str>, &'static str> {
    let mut uris = Vec::new();
    for attribute in attributes {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute else { continue };
        for extension in &requested.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    uris.extend(names.general_names.iter().filter_map(|name| match name {
                        GeneralName::URI(uri) => Some(*uri),
                        _ => None,
                    }));
                }
                ParsedExtension::ParseError { .. } => return Err("an extension that it asks for is malformed"),
                _ => {}
            }
        }
    }
    Ok(uris)
}

/// A new P-256 key, and the request for a certificate of `identity` that carries it.
///
/// # Errors
/// No randomness.
pub fn make(
    identity: &Identity,
) -> Result<(PrivatePkcs8KeyDer<'static>, CertificateSigningRequestDer<'static>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let request = params.serialize_request(&key)?;
    Ok((key.into(), request.into()))
}
