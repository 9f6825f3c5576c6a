//! Who somebody is: the SPIFFE ID of a service account
//! (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>).

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The trust domain where none is configured, as in other meshes.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Who vouches for it.
    pub trust_domain: Arc<str>,
    /// The namespace of the service account.
    pub namespace: Arc<str>,
    /// The service account.
    pub service_account: Arc<str>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, namespace, service_account } = self;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

/// Not the SPIFFE ID of a service account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
pub struct NotAnIdentity(pub String);

impl FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let parts = || {
            let mut parts = uri.strip_prefix("spiffe://")?.split('/');
            let trust_domain = parts.next().filter(|part| is_trust_domain(part))?;
            parts.next().filter(|part| *part == "ns")?;
            let namespace = parts.next().filter(|part| is_segment(part))?;
            parts.next().filter(|part| *part == "sa")?;
            let service_account = parts.next().filter(|part| is_segment(part))?;
            let (trust_domain, namespace, service_account) =
                (trust_domain.into(), namespace.into(), service_account.into());
            parts.next().is_none().then_some(Self { trust_domain, namespace, service_account })
        };
        parts().ok_or_else(|| NotAnIdentity(uri.to_owned()))
    }
}

/// Whether it can be a trust domain: lower case letters, digits, dots, dashes and underscores, at most 255.
pub fn is_trust_domain(text: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_".contains(&c);
    (1..=255).contains(&text.len()) && text.bytes().all(allowed)
}

/// Kubernetes names are narrower (RFC 1123); what the SPIFFE standard allows in a path is accepted.
fn is_segment(text: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b".-_".contains(&c);
    (1..=253).contains(&text.len()) && text != "." && text != ".." && text.bytes().all(allowed)
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_read_as_it_is_written() {
        let uri = "spiffe://cluster.local/ns/shop/sa/cart";
        assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
    }

    #[test]
    fn what_is_not_exactly_an_identity_is_none() {
        for uri in [
            "",
            "spiffe://",
            "https://cluster.local/ns/shop/sa/cart",
            "spiffe:///ns/shop/sa/cart",
            "spiffe://Cluster.local/ns/shop/sa/cart",
            "spiffe://cluster.local/ns//sa/cart",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns/shop/sa/cart/",
            "spiffe://cluster.local/ns/shop/sa/cart/x",
            "spiffe://cluster.local/ns/../sa/cart",
            "spiffe://cluster.local/ns/shop/sa/ca rt",
            "spiffe://cluster.local/sa/shop/ns/cart",
            "spiffe://cluster.local:80/ns/shop/sa/cart",
        ] {
            assert_eq!(uri.parse::<Identity>(), Err(NotAnIdentity(uri.to_owned())), "{uri}");
        }
    }
}
