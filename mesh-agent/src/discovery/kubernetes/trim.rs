//! JSON to the tree that manifests are read into, without what nobody reads: that is never allocated.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::discovery::yaml::{Entry, Node, Value};

/// What is kept of a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keep {
    All,
    /// These fields of a mapping.
    Fields(&'static [(&'static str, Keep)]),
    /// The fields of a mapping whose keys begin so.
    Prefixes(&'static [&'static str]),
    /// This of each item of a list.
    Each(&'static Keep),
}

impl Keep {
    fn of(self, key: &str) -> Option<Self> {
        match self {
            // What is no list though it should be is for the parser to see.
            Self::All | Self::Each(_) => Some(Self::All),
            Self::Fields(fields) => fields.iter().find(|(name, _)| *name == key).map(|(_, keep)| *keep),
            Self::Prefixes(prefixes) => prefixes.iter().any(|prefix| key.starts_with(prefix)).then_some(Self::All),
        }
    }

    fn of_items(self) -> Self {
        match self {
            Self::Each(keep) => *keep,
            other => other,
        }
    }
}

/// Reads a value.
///
/// # Errors
/// It is not JSON.
pub(super) fn read(text: &[u8], keep: Keep) -> serde_json::Result<Node> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let node = keep.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(node)
}

/// Nothing that the API server says has lines.
fn node(value: Value) -> Node {
    Node { line: 0, value }
}

fn plain(text: impl fmt::Display) -> Node {
    node(Value::Scalar { text: text.to_string().into(), plain: true })
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keep {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(node(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(plain(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(plain(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(plain(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(plain(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Node, E> {
        Ok(node(Value::Scalar { text: text.into(), plain: false }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let keep = self.of_items();
        let mut kept = Vec::new();
        while let Some(item) = items.next_element_seed(keep)? {
            kept.push(item);
        }
        Ok(node(Value::Sequence(kept)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = fields.next_key_seed(Key(self))? {
            match key {
                Some((key, keep)) => entries.push(Entry { key, line: 0, node: fields.next_value_seed(keep)? }),
                None => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(node(Value::Mapping(entries)))
    }
}

/// A key, if it is kept, and what of its value.
struct Key(Keep);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<(Box<str>, Keep)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<(Box<str>, Keep)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.of(key).map(|keep| (key.into(), keep)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep::Fields(&[
        ("metadata", Keep::Fields(&[("name", Keep::All), ("annotations", Keep::Prefixes(&["ours/", "theirs/x"]))])),
        ("items", Keep::Each(&Keep::Fields(&[("ip", Keep::All)]))),
        ("spec", Keep::All),
    ]);

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Null => "null".into(),
            Value::Scalar { text, plain: true } => text.to_string(),
            Value::Scalar { text, plain: false } => format!("{text:?}"),
            Value::Sequence(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
            Value::Mapping(entries) => {
                let show = |entry: &Entry| format!("{}:{}", entry.key, show(&entry.node));
                format!("{{{}}}", entries.iter().map(show).collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn what_is_not_named_is_left_out() {
        for (text, expected) in [
            ("{}", "{}"),
            (r#"{"metadata":{"name":"a","managedFields":[{"a":1}],"uid":"x"}}"#, r#"{metadata:{name:"a"}}"#),
            (
                r#"{"metadata":{"annotations":{"ours/a":"1","other":"2","theirs/xy":"3"}}}"#,
                r#"{metadata:{annotations:{ours/a:"1" theirs/xy:"3"}}}"#,
            ),
            (r#"{"items":[{"ip":"1.2.3.4","x":1},{}]}"#, r#"{items:[{ip:"1.2.3.4"} {}]}"#),
            (r#"{"spec":{"a":[true,null,1,-2,1.5,"t\n"]}}"#, r#"{spec:{a:[true null 1 -2 1.5 "t\n"]}}"#),
            // What is of another type than it should be is told by the parser.
            (r#"{"items":{"ip":1},"metadata":"x"}"#, r#"{items:{ip:1} metadata:"x"}"#),
        ] {
            assert_eq!(show(&read(text.as_bytes(), KEEP).unwrap()), expected, "{text}");
        }
        for text in ["", "{", "{}{}", r#"{"spec":}"#, &"[".repeat(100_000)] {
            read(text.as_bytes(), KEEP).unwrap_err();
        }
    }
}
