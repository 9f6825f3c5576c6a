//! Why the API server did not do what it was asked for, and what is to be done about it.

use crate::{
    discovery::{field::Field, yaml::Node},
    model::Reason,
};

/// Why an attempt at a watch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server's answer.
    Refused(Refusal),
    /// There was no answer, or not all of it.
    Unreachable(String),
    /// An answer that makes no sense.
    Malformed(String),
}

/// What the server says in a `Status`, or at least by its code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
    /// `Retry-After`, in seconds.
    pub(super) retry_after: Option<u64>,
    /// The version asked for is later than any that the server knows: it was restored from a backup.
    pub(super) is_from_the_future: bool,
}

impl Refusal {
    /// Reads a `Status`. Unknown text makes one with nothing but the code.
    pub(super) fn read(code: u16, status: &Node) -> Self {
        let root = Field::root(status);
        let text = |key| root.get(key).text().ok().flatten().unwrap_or_default().to_owned();
        let said = root.get("code").text().ok().flatten().and_then(|code| code.parse().ok());
        let details = root.get("details");
        let causes = details.get("causes");
        let is_from_the_future = causes.items().is_ok_and(|mut causes| {
            causes.any(|cause| cause.get("reason").text().ok().flatten() == Some("ResourceVersionTooLarge"))
        });
        Self {
            code: said.unwrap_or(code),
            reason: text("reason"),
            message: text("message"),
            retry_after: None,
            is_from_the_future,
        }
    }
}

impl Failure {
    fn refusal(&self) -> Option<&Refusal> {
        if let Self::Refused(refusal) = self { Some(refusal) } else { None }
    }

    fn code(&self) -> u16 {
        self.refusal().map_or(0, |refusal| refusal.code)
    }

    /// The version that was asked for is not known there any more, or not yet: all has to be listed anew.
    pub(super) fn is_expired(&self) -> bool {
        self.code() == 410
            || self.refusal().is_some_and(|r| r.is_from_the_future || matches!(&*r.reason, "Expired" | "Gone"))
    }

    /// The server does not know how to begin a watch with what there is.
    pub(super) fn is_of_streaming(&self) -> bool {
        matches!(self.code(), 400 | 422)
    }

    /// It knows how, has begun, and cannot: an etcd before 3.4.31 or 3.5.13 does not tell how far it is, for one.
    pub(super) fn breaks_a_stream(&self) -> bool {
        self.refusal().is_some() && !self.is_expired()
    }

    /// Nothing is served at that path.
    pub(super) fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// Another connection, or another token, may do: both are had by reading again where the server is and who asks.
    pub(super) fn calls_for_another_client(&self) -> bool {
        matches!(self, Self::Unreachable(_)) || self.code() == 401
    }

    /// It does not go away by itself.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self.code(), 400..=404 | 422) || matches!(self, Self::Malformed(_))
    }

    /// When to come again, in seconds, if the server says.
    pub(super) fn retry_after(&self) -> Option<u64> {
        self.refusal().and_then(|refusal| refusal.retry_after)
    }

    pub(super) fn reason(&self) -> Reason {
        if self.code() == 403 { Reason::SourceForbidden } else { Reason::SourceDisconnected }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(Refusal { code, message, .. }) if message.is_empty() => write!(f, "the answer is {code}"),
            Self::Refused(Refusal { code, message, .. }) => write!(f, "{message} ({code})"),
            Self::Unreachable(what) => f.write_str(what),
            Self::Malformed(what) => write!(f, "an answer that cannot be read: {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::kubernetes::trim::{Keep, read};

    #[test]
    fn statuses_say_what_to_do() {
        let failure =
            |code, text: &str| Failure::Refused(Refusal::read(code, &read(text.as_bytes(), Keep::All).unwrap()));
        // As recorded: what was compacted is told within a watch that was answered with 200.
        let gone = failure(
            200,
            r#"{"kind":"Status","status":"Failure","message":"too old resource version: 1 (100)","reason":"Expired","code":410}"#,
        );
        assert!(gone.is_expired() && !gone.is_lasting());
        assert_eq!(gone.to_string(), "too old resource version: 1 (100) (410)");
        let future = failure(
            504,
            r#"{"message":"Timeout","reason":"Timeout","code":504,"details":{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}]}}"#,
        );
        assert!(future.is_expired());
        assert!(!failure(504, r#"{"reason":"Timeout","code":504}"#).is_expired());
        let forbidden = failure(403, r#"{"message":"pods is forbidden","code":403}"#);
        assert_eq!((forbidden.reason(), forbidden.is_lasting()), (Reason::SourceForbidden, true));
        assert!(failure(401, "null").calls_for_another_client());
        assert_eq!(failure(502, r#""no JSON object""#).to_string(), "the answer is 502");
    }
}
