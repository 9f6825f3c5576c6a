//! What is asked for: the path, the query and the verb of a request, as the real server tells them apart.

use std::{collections::BTreeMap, time::Duration};

use hyper::Method;

use super::status::Failure;

/// A request for a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
}

impl Target {
    /// None: not the path of a resource.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut segments: Vec<_> = path.strip_prefix('/')?.split('/').map(decode).collect();
        if segments.last().is_some_and(String::is_empty) {
            segments.pop();
        }
        let mut segments = segments.into_iter();
        let group = match segments.next()?.as_str() {
            "api" => String::new(),
            "apis" => segments.next()?,
            _ => return None,
        };
        let mut target = Self { group, version: segments.next()?, ..Self::default() };
        let mut rest: Vec<_> = segments.collect();
        // namespaces/X is the namespace itself, as are its subresources; deeper is inside it.
        if rest.len() > 2 && rest.first().is_some_and(|first| first == "namespaces") {
            let inside = !matches!(rest.get(2).map(String::as_str), Some("status" | "finalize"));
            if inside {
                target.namespace = rest.get(1).cloned();
                rest.drain(..2);
            }
        }
        let mut rest = rest.into_iter();
        target.plural = rest.next()?;
        target.name = rest.next();
        target.subresource = rest.next();
        // A namespace is said to be in itself.
        if target.group.is_empty() && target.plural == "namespaces" {
            target.namespace.clone_from(&target.name);
        }
        rest.next().is_none().then_some(target)
    }
}

/// What is to be done. The names are those of RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub(super) fn of(method: &Method, target: &Target, query: &Query) -> Result<Self, Failure> {
        let named = target.name.is_some();
        match *method {
            Method::GET if named => Ok(Self::Get),
            Method::GET if query.is_true("watch") => Ok(Self::Watch),
            Method::GET => Ok(Self::List),
            Method::POST => Ok(Self::Create),
            Method::PUT => Ok(Self::Update),
            Method::PATCH => Ok(Self::Patch),
            Method::DELETE if named => Ok(Self::Delete),
            Method::DELETE => Ok(Self::DeleteCollection),
            _ => Err(Failure::method_not_allowed()),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// The query string, decoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub(super) fn parse(text: Option<&str>) -> Self {
        let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(key, value)| (decode(key), decode(&value.replace('+', " "))))
                .collect(),
        )
    }

    /// Empty is absent.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn is_true(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| matches!(value.as_str(), "" | "1" | "true"))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, Failure> {
        let number = |value: &str| {
            let problem = format!("Invalid value: {value:?}: strconv.ParseUint: parsing {value:?}: invalid syntax");
            value.parse().map_err(|_| Failure::bad_request(problem))
        };
        self.get(key).map(number).transpose()
    }

    pub(super) fn seconds(&self, key: &str) -> Result<Option<Duration>, Failure> {
        Ok(self.number(key)?.map(Duration::from_secs))
    }
}

/// Percent-decoding; what is not UTF-8 is replaced.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        match (first, tail.get(..2).and_then(hex)) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> Target {
        Target::parse(path).unwrap()
    }

    #[test]
    fn paths_say_group_namespace_name_and_subresource() {
        let pod = target("/api/v1/namespaces/a/pods/p/status");
        assert_eq!((pod.group.as_str(), pod.plural.as_str()), ("", "pods"));
        assert_eq!(
            (pod.namespace.as_deref(), pod.name.as_deref(), pod.subresource.as_deref()),
            (Some("a"), Some("p"), Some("status"))
        );
        let all = target("/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!((all.group.as_str(), all.namespace, all.name), ("discovery.k8s.io", None, None));
    }

    #[test]
    fn a_namespace_is_in_itself_and_so_are_its_subresources() {
        let namespace = target("/api/v1/namespaces/a/finalize");
        assert_eq!((namespace.plural.as_str(), namespace.subresource.as_deref()), ("namespaces", Some("finalize")));
        assert_eq!(namespace.namespace.as_deref(), Some("a"));
    }

    #[test]
    fn other_paths_are_no_targets() {
        for path in ["/version", "/api/v1", "/apis/a.b/v1", "/api", "/api/v1/namespaces/a/pods/p/status/more"] {
            assert_eq!(Target::parse(path), None, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("labelSelector=a+in+%28b%2Cc%29&watch=1&limit=x"));
        assert_eq!(query.get("labelSelector"), Some("a in (b,c)"));
        assert!(query.is_true("watch"));
        assert_eq!(query.number("limit").unwrap_err().code, 400);
    }
}
