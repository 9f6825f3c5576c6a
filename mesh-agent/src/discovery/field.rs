//! Typed reading of a tree: every error knows its line, the path of its field and the value that offends.

use std::{
    fmt::{self, Write},
    net::IpAddr,
};

use super::yaml::{Node, Value};
use crate::model::Reason;

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FieldError {
    pub(super) reason: Reason,
    pub(super) line: usize,
    pub(super) field: String,
    pub(super) message: String,
    pub(super) remedy: String,
}

pub(super) type Result<T> = std::result::Result<T, FieldError>;

#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// A place in an object, whether something is there or not.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    node: Option<&'a Node>,
    line: usize,
    parent: Option<(&'a Field<'a>, Step<'a>)>,
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((parent, step)) = self.parent else { return Ok(()) };
        parent.fmt(f)?;
        match step {
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) if key.contains(['.', '/']) => write!(f, "[{key}]"),
            Step::Key(key) => {
                if parent.parent.is_some() {
                    f.write_char('.')?;
                }
                f.write_str(key)
            }
        }
    }
}

impl<'a> Field<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self { node: Some(node), line: node.line, parent: None }
    }

    /// The line, of the parent if nothing is there.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Whether nothing is there, or `null`.
    pub(super) fn is_absent(&self) -> bool {
        self.value().is_none()
    }

    fn value(&self) -> Option<&'a Value> {
        self.node.map(|node| &node.value).filter(|value| **value != Value::Null)
    }

    /// The field `key` of a mapping; absent if this is none.
    pub(super) fn get(&'a self, key: &'a str) -> Self {
        let entry = match self.value() {
            Some(Value::Mapping(entries)) => entries.iter().find(|entry| &*entry.key == key),
            _ => None,
        };
        let parent = Some((self, Step::Key(key)));
        match entry {
            Some(entry) => Self { node: Some(&entry.node), line: entry.line, parent },
            None => Self { node: None, line: self.line, parent },
        }
    }

    /// Like [`Self::get`], of something that has to be a mapping or absent.
    pub(super) fn mapping(&'a self, key: &'a str) -> Result<Self> {
        let field = self.get(key);
        match field.value() {
            None | Some(Value::Mapping(_)) => Ok(field),
            Some(_) => Err(field.wrong_type("a mapping")),
        }
    }

    /// Keys and fields of a mapping; none if absent.
    pub(super) fn entries(&'a self) -> Result<impl Iterator<Item = (&'a str, Self)>> {
        let entries = match self.value() {
            None => &[],
            Some(Value::Mapping(entries)) => entries.as_slice(),
            Some(_) => return Err(self.wrong_type("a mapping")),
        };
        Ok(entries.iter().map(move |entry| {
            let parent = Some((self, Step::Key(&entry.key)));
            (&*entry.key, Self { node: Some(&entry.node), line: entry.line, parent })
        }))
    }

    /// Items of a list; none if absent.
    pub(super) fn items(&'a self) -> Result<impl Iterator<Item = Self>> {
        let items = match self.value() {
            None => &[],
            Some(Value::Sequence(items)) => items.as_slice(),
            Some(_) => return Err(self.wrong_type("a list")),
        };
        Ok(items.iter().enumerate().map(move |(index, node)| Self {
            node: Some(node),
            line: node.line,
            parent: Some((self, Step::Index(index))),
        }))
    }

    pub(super) fn text(&self) -> Result<Option<&'a str>> {
        match self.value() {
            None => Ok(None),
            Some(Value::Scalar { text, .. }) => Ok(Some(text)),
            Some(_) => Err(self.wrong_type("a string")),
        }
    }

    pub(super) fn required_text(&self) -> Result<&'a str> {
        self.text()?.ok_or_else(|| self.missing())
    }

    pub(super) fn boolean(&self) -> Result<Option<bool>> {
        match self.value() {
            None => Ok(None),
            Some(Value::Scalar { text, plain: true }) if matches!(&**text, "true" | "True" | "TRUE") => Ok(Some(true)),
            Some(Value::Scalar { text, plain: true }) if matches!(&**text, "false" | "False" | "FALSE") => {
                Ok(Some(false))
            }
            Some(_) => Err(self.wrong_type("true or false")),
        }
    }

    /// A port number.
    pub(super) fn port(&self) -> Result<Option<u16>> {
        match self.value() {
            None => Ok(None),
            Some(Value::Scalar { text, plain: true }) => match text.parse() {
                Ok(port) if port > 0 => Ok(Some(port)),
                _ => Err(self.wrong_type("a port, 1 to 65535")),
            },
            Some(_) => Err(self.wrong_type("a port, 1 to 65535")),
        }
    }

    /// An address that a pod or a service can have, in canonical form; `None` also for an empty string.
    pub(super) fn address(&self) -> Result<Option<IpAddr>> {
        let Some(text) = self.text()?.filter(|text| !text.is_empty()) else { return Ok(None) };
        let address = text.parse::<IpAddr>().map(|address| address.to_canonical());
        match address {
            Ok(address) if !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() => {
                Ok(Some(address))
            }
            Ok(_) => {
                Err(self.bad("is not an address that others can reach", "Write the address of the pod's network."))
            }
            Err(_) => Err(self.bad("is not an IP address", "Write an IPv4 or IPv6 address.")),
        }
    }

    /// An error about what is there; `what` follows the value.
    pub(super) fn bad(&self, what: &str, remedy: &str) -> FieldError {
        self.error(Reason::BadField, format!("{} {what}", self.shown()), remedy)
    }

    pub(super) fn error(&self, reason: Reason, message: String, remedy: impl Into<String>) -> FieldError {
        FieldError { reason, line: self.line, field: self.to_string(), message, remedy: remedy.into() }
    }

    pub(super) fn missing(&self) -> FieldError {
        self.error(Reason::BadField, "is missing".into(), "Add it.")
    }

    fn wrong_type(&self, wanted: &str) -> FieldError {
        self.bad(&format!("is not {wanted}"), &format!("Write {wanted}."))
    }

    /// The value as messages show it, not too long.
    fn shown(&self) -> String {
        match self.value() {
            None => "nothing".into(),
            Some(Value::Sequence(_)) => "a list".into(),
            Some(Value::Mapping(_)) => "a mapping".into(),
            Some(Value::Null) => "null".into(),
            Some(Value::Scalar { text, .. }) => shown(text),
        }
    }
}

/// A text in quotes, cut if it is long.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}
