//! What the headers of a tunnel say, as Istio's ambient mesh writes them. Pure; what others send is never trusted to be
//! well formed, and what it claims decides nothing: who somebody is, his certificate says.

use std::net::{IpAddr, SocketAddr};

use crate::model::ObjectName;

/// W3C baggage (<https://www.w3.org/TR/baggage/>) with the names of OpenTelemetry.
pub(in crate::proxy) const BAGGAGE: &str = "baggage";
/// RFC 7239.
pub(in crate::proxy) const FORWARDED: &str = "forwarded";
/// <https://www.w3.org/TR/trace-context/>.
pub(in crate::proxy) const TRACEPARENT: &str = "traceparent";
/// Our own: the reason code of a refusal.
pub(in crate::proxy) const REASON: &str = "mesh-agent-reason";

const NAMESPACE: &str = "k8s.namespace.name";
const POD: &str = "k8s.pod.name";
/// The longest name of a Kubernetes object.
const LONGEST_NAME: usize = 253;

/// `baggage` for what a pod opens.
pub(in crate::proxy) fn baggage(source: &ObjectName) -> String {
    // Kubernetes names have no character that would have to be escaped.
    format!("{NAMESPACE}={},{POD}={}", source.namespace, source.name)
}

/// The pod that `baggage` names. Properties behind a `;` and members of other names are passed over.
pub(in crate::proxy) fn pod_in_baggage(baggage: &str) -> Option<ObjectName> {
    let value = |wanted: &str| {
        baggage.split(',').find_map(|member| {
            let (key, value) = member.split(';').next()?.split_once('=')?;
            (key.trim() == wanted).then(|| value.trim()).filter(|value| is_name(value))
        })
    };
    Some(ObjectName::new(value(NAMESPACE)?, value(POD)?))
}

fn is_name(text: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-".contains(&c))
}

/// `forwarded` for a connection of `client`.
pub(in crate::proxy) fn forwarded(client: SocketAddr) -> String {
    format!("for=\"{client}\"")
}

/// The first client that `forwarded` names, if by address; port 0 if it names none.
pub(in crate::proxy) fn client_in_forwarded(forwarded: &str) -> Option<SocketAddr> {
    let first = forwarded.split(',').next()?;
    let node = first.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"'))
    })?;
    let bare = node.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(node);
    let address = node.parse().or_else(|_| bare.parse::<IpAddr>().map(|address| SocketAddr::new(address, 0))).ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// `traceparent` of a new trace that nobody has asked to be sampled.
pub(in crate::proxy) fn traceparent(trace: u128, span: u64) -> String {
    // Zeros are not valid.
    format!("00-{:032x}-{:016x}-00", trace.max(1), span.max(1))
}

/// The trace that `traceparent` belongs to.
pub(in crate::proxy) fn trace_in_traceparent(traceparent: &str) -> Option<u128> {
    let mut parts = traceparent.split('-');
    let hex = |part: Option<&str>, length: usize| {
        let part = part.filter(|part| part.len() == length)?;
        part.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')).then(|| u128::from_str_radix(part, 16).ok())?
    };
    let version = hex(parts.next(), 2)?;
    let (trace, span) = (hex(parts.next(), 32)?, hex(parts.next(), 16)?);
    hex(parts.next(), 2)?;
    // Later versions may say more.
    let is_whole = version != 0xff && (version > 0 || parts.next().is_none());
    (is_whole && trace != 0 && span != 0).then_some(trace)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let pod = ObjectName::new("shop", "cart-7d9f.x");
        assert_eq!(pod_in_baggage(&baggage(&pod)), Some(pod));
        for client in ["10.1.2.3:4567", "[2001:db8::1]:80"] {
            let client = client.parse().unwrap();
            assert_eq!(client_in_forwarded(&forwarded(client)), Some(client));
        }
        assert_eq!(trace_in_traceparent(&traceparent(7, 9)), Some(7));
        assert_eq!(trace_in_traceparent(&traceparent(0, 0)), Some(1));
    }

    #[test]
    fn others_write_it_otherwise() {
        let baggage = "k8s.cluster.name=c, k8s.namespace.name = shop ;x=y,service.name=cart,k8s.pod.name=cart-1";
        assert_eq!(pod_in_baggage(baggage), Some(ObjectName::new("shop", "cart-1")));
        for (text, client) in [
            ("for=10.1.2.3", "10.1.2.3:0"),
            ("by=x;For=\"[2001:db8::1]\";proto=http, for=10.9.9.9", "[2001:db8::1]:0"),
            ("for=\"::ffff:10.1.2.3\"", "10.1.2.3:0"),
        ] {
            assert_eq!(client_in_forwarded(text), Some(client.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn nonsense_is_none() {
        for text in ["", "for", "for=", "for=unknown", "for=_hidden", "for=\"10.1.2.3:99999\"", "by=10.1.2.3"] {
            assert_eq!(client_in_forwarded(text), None, "{text}");
        }
        for text in ["", "=", "k8s.namespace.name=shop", "k8s.namespace.name=Sh%6Fp,k8s.pod.name=x", ",,,;;;==="] {
            assert_eq!(pod_in_baggage(text), None, "{text}");
        }
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(trace_in_traceparent(good).is_some() && trace_in_traceparent(&good.replace("00-", "01-")).is_some());
        for text in [
            "",
            "00",
            &good.to_uppercase(),
            &format!("{good}-extra"),
            &good.replacen("00", "ff", 1),
            &good.replace("b7ad6b7169203331", "0000000000000000"),
            &good.replace("0af7651916cd43dd8448eb211c80319c", "+af7651916cd43dd8448eb211c80319c"),
        ] {
            assert_eq!(trace_in_traceparent(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parsers_panic(text in "[ -~]{0,80}", seed in "[a-z0-9.=;,\"\\[\\]: -]{0,120}") {
            for text in [text, seed] {
                let _ = (pod_in_baggage(&text), client_in_forwarded(&text), trace_in_traceparent(&text));
            }
        }

        #[test]
        fn one_changed_character_does_no_harm(at in 0_usize..60, with in any::<char>()) {
            let mutate = |text: String| -> String {
                text.chars().enumerate().map(|(index, c)| if index == at { with } else { c }).collect()
            };
            let pod = pod_in_baggage(&mutate(baggage(&ObjectName::new("shop", "cart-1"))));
            prop_assert!(pod.is_none_or(|pod| is_name(&pod.namespace) && is_name(&pod.name)));
            let _ = client_in_forwarded(&mutate(forwarded("10.1.2.3:4567".parse().unwrap())));
            let _ = trace_in_traceparent(&mutate(traceparent(1 << 99, 77)));
        }
    }
}
