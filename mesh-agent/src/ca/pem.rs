//! Certificates in PEM (RFC 7468).

use pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::certificate;

/// One block per certificate.
pub(super) fn certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| block("CERTIFICATE", certificate)).collect()
}

/// One block.
pub(super) fn block(label: &str, der: &[u8]) -> String {
    pem::encode_config(&Pem::new(label, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

/// All certificates of a text, at least one.
///
/// # Errors
/// What is wrong.
pub(super) fn read_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(text).collect();
    let certificates = read.map_err(|error| error.to_string())?;
    for certificate in &certificates {
        certificate::read(certificate)?;
    }
    if certificates.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(certificates) }
}
