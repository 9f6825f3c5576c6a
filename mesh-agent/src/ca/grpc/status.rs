//! How a call ended, and what of it a [`Refusal`] is.

use std::{fmt::Write, str::FromStr};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderValue};
use prost::Message;

use crate::{
    ca::wire::{Any, ErrorInfo, RpcStatus},
    identity::Refusal,
    model::Reason,
};

const DOMAIN: &str = "mesh-agent.io";
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// Longest message of a refusal, in characters.
const MAX_MESSAGE: usize = 512;

/// Written without padding, read with or without: the protocol wants both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)+) => {
        /// A gRPC status code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code {
            $($(#[$doc])* $name = $number,)+
        }

        impl Code {
            /// From what stands in `grpc-status`; unknown numbers are `Unknown`.
            fn from_number(number: i32) -> Self {
                match number { $($number => Self::$name,)+ _ => Self::Unknown }
            }
        }
    };
}

codes! {
    /// It went well.
    Ok = 0,
    /// The caller gave up.
    Cancelled = 1,
    /// Anything.
    Unknown = 2,
    /// The request can never be served.
    InvalidArgument = 3,
    /// It took too long.
    DeadlineExceeded = 4,
    /// The caller may not.
    PermissionDenied = 7,
    /// Too much or too often.
    ResourceExhausted = 8,
    /// The state is not one in which it can be served.
    FailedPrecondition = 9,
    /// There is no such method.
    Unimplemented = 12,
    /// The server is broken.
    Internal = 13,
    /// The server cannot be reached, or not now.
    Unavailable = 14,
    /// The server does not know the caller.
    Unauthenticated = 16,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct Status {
    /// The code.
    pub code: Code,
    /// For people.
    pub message: String,
    /// Our own reason, if the server is one of ours.
    pub reason: Option<Reason>,
}

impl Status {
    /// Without a reason of ours.
    pub fn new(code: Code, message: &str) -> Self {
        Self { code, message: message.to_owned(), reason: None }
    }

    /// Reads it from trailers, or from the headers of a response without a body. `None` if there is none.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let code = headers.get("grpc-status")?.to_str().ok().and_then(|code| i32::from_str(code).ok());
        let message = headers.get("grpc-message").map(|message| percent_decode(message.as_bytes())).unwrap_or_default();
        let reason = headers.get("grpc-status-details-bin").and_then(|details| read_reason(details.as_bytes()));
        Some(Self { code: code.map_or(Code::Unknown, Code::from_number), message, reason })
    }

    /// Writes it into trailers.
    pub fn write(&self, trailers: &mut HeaderMap) {
        trailers.insert("grpc-status", HeaderValue::from(self.code as i32));
        if self.code == Code::Ok {
            return;
        }
        if let Ok(message) = HeaderValue::from_str(&percent_encode(&self.message)) {
            trailers.insert("grpc-message", message);
        }
        if let Some(reason) = self.reason {
            let info = ErrorInfo { reason: reason.code().to_owned(), domain: DOMAIN.to_owned() };
            let detail = Any { type_url: ERROR_INFO.to_owned(), value: info.encode_to_vec() };
            let status = RpcStatus { code: self.code as i32, message: self.message.clone(), details: vec![detail] };
            if let Ok(details) = HeaderValue::from_str(&BASE64.encode(status.encode_to_vec())) {
                trailers.insert("grpc-status-details-bin", details);
            }
        }
    }
}

impl From<&Refusal> for Status {
    fn from(refusal: &Refusal) -> Self {
        let code = match refusal.reason {
            Reason::CaUnauthenticated => Code::Unauthenticated,
            Reason::CaNotOnNode => Code::PermissionDenied,
            Reason::CaBadRequest | Reason::CaWrongIdentity => Code::InvalidArgument,
            Reason::CaLimited => Code::ResourceExhausted,
            Reason::CaExpired | Reason::CaNotReady => Code::Unavailable,
            _ => Code::Internal,
        };
        // It may repeat what the caller wrote, and has to fit into a header.
        let message = refusal.to_string().chars().take(MAX_MESSAGE).collect();
        Self { code, message, reason: Some(refusal.reason) }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let reason = status.reason.unwrap_or(match status.code {
            Code::Unauthenticated => Reason::CaUnauthenticated,
            Code::InvalidArgument => Reason::CaBadRequest,
            Code::ResourceExhausted => Reason::CaLimited,
            Code::Unavailable | Code::DeadlineExceeded => Reason::CaUnreachable,
            _ => Reason::CaRefused,
        });
        // A token is read anew for every call, and an authority may hear of a pod later than its node does.
        let is_final = match reason {
            Reason::CaBadRequest | Reason::CaWrongIdentity => true,
            Reason::CaRefused => matches!(status.code, Code::PermissionDenied | Code::Unimplemented),
            _ => false,
        };
        let prefix = format!("{reason}: ");
        let message = match status.message.strip_prefix(&prefix) {
            Some(message) => message.to_owned(),
            None => status.to_string(),
        };
        Self { reason, message: format!("the authority says: {message}"), is_transient: !is_final }
    }
}

fn read_reason(details: &[u8]) -> Option<Reason> {
    let status = RpcStatus::decode(BASE64.decode(details).ok()?.as_slice()).ok()?;
    let info = status.details.iter().find(|detail| detail.type_url == ERROR_INFO)?;
    let info = ErrorInfo::decode(info.value.as_slice()).ok()?;
    info.reason.parse().ok().filter(|_| info.domain == DOMAIN)
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// What is not encoded well stays as it is.
fn percent_decode(text: &[u8]) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(value) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            decoded.push(value);
            rest = after.get(2..).unwrap_or_default();
        } else {
            decoded.push(byte);
            rest = after;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_arrives_as_it_was_sent() {
        let sent = Refusal {
            reason: Reason::CaNotOnNode,
            message: "node \"ä\" runs\nno pod of 100% that".to_owned(),
            is_transient: true,
        };
        let mut trailers = HeaderMap::new();
        Status::from(&sent).write(&mut trailers);
        assert_eq!(trailers["grpc-status"], "7");
        let got = Refusal::from(Status::read(&trailers).unwrap());
        assert_eq!((got.reason, got.is_transient), (sent.reason, true));
        assert_eq!(got.message, format!("the authority says: {}", sent.message));
    }

    #[test]
    fn what_a_caller_wrote_does_not_fill_the_headers() {
        let message = "ä".repeat(100_000);
        let status = Status::from(&Refusal { reason: Reason::CaBadRequest, message, is_transient: false });
        assert_eq!(status.message.chars().count(), MAX_MESSAGE);
        assert!(status.message.starts_with("ca_bad_request: ä"));
    }

    #[test]
    fn statuses_of_other_authorities_are_understood() {
        let refusal = |code, message: &str| {
            let mut trailers = HeaderMap::new();
            Status::new(code, message).write(&mut trailers);
            Refusal::from(Status::read(&trailers).unwrap())
        };
        let got = refusal(Code::PermissionDenied, "not allowed");
        assert_eq!((got.reason, got.is_transient), (Reason::CaRefused, false));
        assert!(got.message.contains("PermissionDenied: not allowed"), "{got}");
        assert!(refusal(Code::Unavailable, "").is_transient);
        assert!(refusal(Code::Unauthenticated, "").is_transient, "the token may be replaced");
        assert!(!refusal(Code::InvalidArgument, "").is_transient);
        let mut headers = HeaderMap::new();
        assert_eq!(Status::read(&headers), None);
        headers.insert("grpc-status", HeaderValue::from_static("many"));
        assert_eq!(Status::read(&headers).unwrap().code, Code::Unknown);
    }

    #[test]
    fn messages_are_decoded_whatever_they_are() {
        for (text, decoded) in
            [("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("a%20b", "a b"), ("%C3%A4", "ä"), ("%ff", "\u{fffd}")]
        {
            assert_eq!(percent_decode(text.as_bytes()), decoded);
        }
    }
}
