//! Why a TLS handshake failed, in the words of [`Reason`].

use rustls::{AlertDescription, CertificateError, Error};

use super::leaf::NotAnSvid;
use crate::model::Reason;

/// The reason for which a handshake of one of our configurations ended with `error`.
pub fn handshake_reason(error: &Error) -> Reason {
    match error {
        Error::NoCertificatesPresented => Reason::PeerUnidentified,
        Error::InvalidCertificate(error) => certificate_reason(error),
        Error::PeerIncompatible(_) => Reason::TlsIncompatible,
        Error::AlertReceived(alert) => alert_reason(*alert),
        _ => Reason::TlsHandshake,
    }
}

fn certificate_reason(error: &CertificateError) -> Reason {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Reason::PeerCertificateExpired,
        CertificateError::Other(other) if other.0.is::<NotAnSvid>() => Reason::PeerUnidentified,
        _ => Reason::PeerNotTrusted,
    }
}

fn alert_reason(alert: AlertDescription) -> Reason {
    match alert {
        AlertDescription::ProtocolVersion
        | AlertDescription::InsufficientSecurity
        | AlertDescription::HandshakeFailure
        | AlertDescription::NoApplicationProtocol => Reason::TlsIncompatible,
        AlertDescription::AccessDenied
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRequired
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError
        | AlertDescription::UnknownCA
        | AlertDescription::UnsupportedCertificate => Reason::PeerRefusedCertificate,
        _ => Reason::TlsHandshake,
    }
}
