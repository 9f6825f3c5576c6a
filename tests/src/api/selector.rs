//! Label and field selectors: the grammar of k8s.io/apimachinery, and what they match.

use super::{entry::Entry, kinds::Kind, request::Query, status::Failure};

/// What a list or a watch is narrowed to.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    /// Also where the label is absent.
    NotIn(String, Vec<String>),
    Greater(String, i64),
    Less(String, i64),
}

#[derive(Clone, Debug)]
struct FieldRequirement {
    field: Field,
    value: String,
    equal: bool,
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Name,
    Namespace,
    /// Index into the kind's list.
    Other(usize),
}

impl Selector {
    pub(super) fn parse(kind: &Kind, query: &Query) -> Result<Self, Failure> {
        Ok(Self {
            labels: labels(query.get("labelSelector").unwrap_or_default()).map_err(Failure::bad_request)?,
            fields: fields(kind, query.get("fieldSelector").unwrap_or_default()).map_err(Failure::bad_request)?,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name that can match, if the selector says so: what RBAC by name looks at.
    pub(super) fn name(&self) -> Option<&str> {
        self.fields
            .iter()
            .find(|requirement| requirement.equal && matches!(requirement.field, Field::Name))
            .map(|requirement| requirement.value.as_str())
    }

    pub(super) fn matches(&self, entry: &Entry) -> bool {
        let field = |requirement: &FieldRequirement| {
            let value = match requirement.field {
                Field::Name => &entry.key.name,
                Field::Namespace => &entry.key.namespace,
                Field::Other(index) => entry.fields.get(index).expect("as many as the kind has"),
            };
            (*value == requirement.value) == requirement.equal
        };
        self.fields.iter().all(field) && self.labels.iter().all(|requirement| requirement.matches(entry))
    }
}

impl Requirement {
    fn matches(&self, entry: &Entry) -> bool {
        let number = |key| entry.labels.get(key).and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::Exists(key) => entry.labels.contains_key(key),
            Self::Absent(key) => !entry.labels.contains_key(key),
            Self::In(key, values) => entry.labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => entry.labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Greater(key, than) => number(key).is_some_and(|value| value > *than),
            Self::Less(key, than) => number(key).is_some_and(|value| value < *than),
        }
    }
}

/// `a=b,c!=d`.
fn fields(kind: &Kind, text: &str) -> Result<Vec<FieldRequirement>, String> {
    let parse = |part: &str| {
        let (path, equal, value) = [("!=", false), ("==", true), ("=", true)]
            .into_iter()
            .find_map(|(operator, equal)| part.split_once(operator).map(|(path, value)| (path, equal, value)))
            .ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
        let place = kind.fields.iter().position(|field| field == path);
        let field = match path {
            "metadata.name" => Field::Name,
            "metadata.namespace" => Field::Namespace,
            _ => Field::Other(place.ok_or_else(|| format!("field label not supported: {path}"))?),
        };
        Ok(FieldRequirement { field, value: value.to_owned(), equal })
    };
    text.split(',').filter(|part| !part.is_empty()).map(parse).collect()
}

/// `a,!b,c=d,e in (f,g),h notin (i)`.
fn labels(text: &str) -> Result<Vec<Requirement>, String> {
    let tokens = tokens(text);
    let mut parser = Parser { tokens: &tokens };
    let mut all = Vec::new();
    if tokens.is_empty() {
        return Ok(all);
    }
    loop {
        all.push(parser.requirement().map_err(|problem| format!("unable to parse requirement: {problem}"))?);
        match parser.next() {
            "" => return Ok(all),
            "," if !parser.peek().is_empty() => {}
            "," => return Err("found '', expected: identifier after ','".to_owned()),
            other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
        }
    }
}

const OPERATORS: [&str; 7] = ["!=", "==", "=", "(", ")", ",", "!"];

fn tokens(mut text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return tokens;
        }
        let operator = OPERATORS.iter().chain(&[">", "<"]).find(|operator| text.starts_with(**operator));
        let end = operator.map_or_else(
            || text.find(|c: char| c.is_whitespace() || "!=(),<>".contains(c)).unwrap_or(text.len()),
            |operator| operator.len(),
        );
        let (token, rest) = text.split_at(end);
        tokens.push(token);
        text = rest;
    }
}

struct Parser<'a> {
    tokens: &'a [&'a str],
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.first().copied().unwrap_or_default()
    }

    fn next(&mut self) -> &'a str {
        let next = self.peek();
        self.tokens = self.tokens.get(1..).unwrap_or_default();
        next
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = self.peek() == "!";
        if negated {
            self.next();
        }
        let key = self.next();
        if key.is_empty() || OPERATORS.contains(&key) {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let key = key.to_owned();
        if negated {
            return Ok(Requirement::Absent(key));
        }
        Ok(match self.peek() {
            "" | "," => Requirement::Exists(key),
            "in" => Requirement::In(key, self.set()?),
            "notin" => Requirement::NotIn(key, self.set()?),
            "=" | "==" => Requirement::In(key, self.exact()),
            "!=" => Requirement::NotIn(key, self.exact()),
            ">" => Requirement::Greater(key, self.number()?),
            "<" => Requirement::Less(key, self.number()?),
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        })
    }

    /// The value after an operator; none is the empty one.
    fn exact(&mut self) -> Vec<String> {
        self.next();
        let value = if matches!(self.peek(), "" | ",") { "" } else { self.next() };
        vec![value.to_owned()]
    }

    fn number(&mut self) -> Result<i64, String> {
        let value = self.exact().concat();
        value.parse().map_err(|_| format!("for 'Gt', 'Lt' operators, the value must be an integer: {value}"))
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        self.next();
        let mut values = Vec::new();
        match self.next() {
            "(" => {}
            other => return Err(format!("found '{other}' expected: '('")),
        }
        loop {
            match self.next() {
                ")" => return Ok(values),
                "," => {}
                other if other.is_empty() || OPERATORS.contains(&other) => {
                    return Err(format!("found '{other}', expected: ',', ')' or identifier"));
                }
                value => values.push(value.to_owned()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_read() {
        let all = labels("a,!b,c=d,e!=f,g in (h,i),j notin (k),l>3").unwrap();
        let text = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(all[0], Requirement::Exists("a".to_owned()));
        assert_eq!(all[1], Requirement::Absent("b".to_owned()));
        assert_eq!(all[2], Requirement::In("c".to_owned(), text(&["d"])));
        assert_eq!(all[3], Requirement::NotIn("e".to_owned(), text(&["f"])));
        assert_eq!(all[4], Requirement::In("g".to_owned(), text(&["h", "i"])));
        assert_eq!(all[5], Requirement::NotIn("j".to_owned(), text(&["k"])));
        assert_eq!(all[6], Requirement::Greater("l".to_owned(), 3));
    }

    #[test]
    fn what_is_not_a_selector_is_refused() {
        for text in ["a in (", "a in b", "=b", "a b", "a,,b"] {
            assert!(labels(text).is_err(), "{text}");
        }
    }
}
