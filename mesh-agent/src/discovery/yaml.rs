//! YAML text to a tree in which every node knows its line, with bounds on depth and size.
//!
//! Built on the parser's events and not on its recursive loader: a manifest folder is input, and a few kilobytes of
//! nested brackets or of anchors that multiply must not take the agent down.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};

/// Deepest nesting. Kubernetes objects stay below 30.
const MAX_DEPTH: usize = 64;
/// Most nodes of one file, those that aliases repeat included.
const MAX_NODES: usize = 1_000_000;

/// A node and the line it starts on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    Null,
    Scalar {
        text: Box<str>,
        /// Without quotes: it may stand for a number or a boolean.
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) key: Box<str>,
    pub(super) line: usize,
    pub(super) node: Node,
}

/// Why a text is not YAML, or is more than we read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub(super) struct Error {
    pub(super) line: usize,
    pub(super) message: String,
}

impl Error {
    fn new(line: usize, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }

    fn too_deep(line: usize) -> Self {
        Self::new(line, format!("nested deeper than {MAX_DEPTH} levels, aliases included"))
    }
}

impl From<ScanError> for Error {
    fn from(error: ScanError) -> Self {
        Self::new(error.marker().line(), error.info())
    }
}

impl Value {
    fn scalar(text: &str, plain: bool) -> Self {
        if plain && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
            Self::Null
        } else {
            Self::Scalar { text: text.into(), plain }
        }
    }
}

/// The documents of a text; empty ones come as [`Value::Null`].
///
/// # Errors
/// The first thing in the text that is not YAML, has no place in a manifest (a key that is not a scalar), or is too
/// much.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, Error> {
    let mut parser = Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event?;
        builder.event(event, span.start.line())?;
    }
    Ok(builder.documents)
}

/// A collection that has begun and not ended.
struct Open {
    node: Node,
    anchor: usize,
    /// A mapping's key that waits for its value.
    key: Option<(Box<str>, usize)>,
}

/// What aliases repeat.
struct Anchored {
    node: Node,
    nodes: usize,
    depth: usize,
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Anchored>,
    nodes: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), Error> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => Ok(()),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = Value::scalar(&text, style == ScalarStyle::Plain && tag.is_none());
                self.count(1, line)?;
                self.add(Node { line, value }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.begin(Value::Sequence(Vec::new()), anchor, line),
            Event::MappingStart(anchor, _) => self.begin(Value::Mapping(Vec::new()), anchor, line),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let Some(&Anchored { nodes, depth, .. }) = self.anchors.get(&anchor) else {
                    return Err(Error::new(
                        line,
                        "an alias names an anchor that is not complete or of another document",
                    ));
                };
                // Counted before it is copied: aliases of aliases multiply.
                self.count(nodes, line)?;
                // So is its depth: what walks the tree does so on the stack.
                if self.open.len() + depth > MAX_DEPTH {
                    return Err(Error::too_deep(line));
                }
                let node = self.anchors.get(&anchor).map(|anchored| anchored.node.clone());
                node.map_or(Ok(()), |node| self.add(node, 0))
            }
        }
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), Error> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(Error::new(line, format!("more than {MAX_NODES} nodes in one file, aliases included")));
        }
        Ok(())
    }

    fn begin(&mut self, value: Value, anchor: usize, line: usize) -> Result<(), Error> {
        if self.open.len() == MAX_DEPTH {
            return Err(Error::too_deep(line));
        }
        self.count(1, line)?;
        self.open.push(Open { node: Node { line, value }, anchor, key: None });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Error> {
        let Some(mut open) = self.open.pop() else { return Ok(()) };
        if let Value::Mapping(entries) = &mut open.node.value {
            merge(entries);
            let mut keys = BTreeSet::new();
            if let Some(entry) = entries.iter().find(|entry| !keys.insert(&entry.key)) {
                return Err(Error::new(entry.line, format!("the key {:?} appears twice in one mapping", entry.key)));
            }
        }
        self.add(open.node, open.anchor)
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Error> {
        if anchor > 0 {
            let nodes = size(&node);
            self.count(nodes, node.line)?;
            let depth = depth(&node);
            self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, depth });
        }
        let Some(parent) = self.open.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        match &mut parent.node.value {
            Value::Sequence(items) => items.push(node),
            Value::Mapping(entries) => match parent.key.take() {
                Some((key, line)) => entries.push(Entry { key, line, node }),
                None => match node.value {
                    Value::Scalar { text, .. } => parent.key = Some((text, node.line)),
                    Value::Null => parent.key = Some(("".into(), node.line)),
                    _ => return Err(Error::new(node.line, "a key must be a string, not a list or a mapping")),
                },
            },
            Value::Null | Value::Scalar { .. } => {}
        }
        Ok(())
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Null | Value::Scalar { .. } => 0,
        Value::Sequence(items) => items.iter().map(size).sum(),
        Value::Mapping(entries) => entries.iter().map(|entry| size(&entry.node)).sum(),
    }
}

fn depth(node: &Node) -> usize {
    match &node.value {
        Value::Null | Value::Scalar { .. } => 0,
        Value::Sequence(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Mapping(entries) => 1 + entries.iter().map(|entry| depth(&entry.node)).max().unwrap_or_default(),
    }
}

/// Resolves `<<`: the keys of the mappings it holds, as far as the mapping itself has them not.
fn merge(entries: &mut Vec<Entry>) {
    let Some(at) = entries.iter().position(|entry| &*entry.key == "<<") else { return };
    let merged = entries.remove(at);
    let mappings = match merged.node.value {
        Value::Sequence(items) => items,
        _ => vec![merged.node],
    };
    let mut known: BTreeSet<_> = entries.iter().map(|entry| entry.key.clone()).collect();
    for mapping in mappings {
        let Value::Mapping(more) = mapping.value else { continue };
        entries.extend(more.into_iter().filter(|entry| known.insert(entry.key.clone())));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The value in JSON-like notation, with the line of each mapping value.
    fn show(node: &Node) -> String {
        match &node.value {
            Value::Null => "null".into(),
            Value::Scalar { text, plain: true } => text.to_string(),
            Value::Scalar { text, plain: false } => format!("{text:?}"),
            Value::Sequence(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
            Value::Mapping(entries) => {
                let show = |entry: &Entry| format!("{}@{}:{}", entry.key, entry.line, show(&entry.node));
                format!("{{{}}}", entries.iter().map(show).collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn trees_carry_lines_and_quotes() {
        for (text, expected) in [
            ("", vec![]),
            ("# only a comment\n", vec![]),
            ("a: 1\nb:\n  - x\n  - 'y'\n", vec!["{a@1:1 b@2:[x \"y\"]}"]),
            ("a: 1\n---\nb: ~\n---\n", vec!["{a@1:1}", "{b@3:null}", "null"]),
            ("{\"kind\": \"Pod\", \"n\": [1]}", vec!["{kind@1:\"Pod\" n@1:[1]}"]),
            ("a: &x {k: v}\nb: *x\n", vec!["{a@1:{k@1:v} b@2:{k@1:v}}"]),
            ("a: &x {k: v, l: w}\nb:\n  <<: *x\n  l: own\n", vec!["{a@1:{k@1:v l@1:w} b@2:{l@4:own k@1:v}}"]),
            ("\u{feff}a: b", vec!["{a@1:b}"]),
            ("a: |\n  two\n  lines\n", vec!["{a@1:\"two\\nlines\\n\"}"]),
        ] {
            let documents = documents(text).unwrap();
            assert_eq!(documents.iter().map(show).collect::<Vec<_>>(), expected, "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line, part) in [
            ("a: b\nc: [1, 2\n", 3, ""),
            ("a: b\na: c\n", 2, "\"a\" appears twice"),
            ("a: b\n  c: d\n", 2, ""),
            ("? [a]\n: b\n", 1, "key must be a string"),
            ("a: &x 1\n---\nb: *x\n", 3, "alias"),
            ("a: &x [*x]\n", 1, "alias"),
        ] {
            let error = documents(text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}: {error}");
            assert!(error.message.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn bombs_are_errors() {
        let mut aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..30 {
            let items = vec![format!("*a{}", level - 1); 10].join(", ");
            aliases.extend([format!("a{level}: &a{level} [{items}]\n")]);
        }
        let mut nested = "a0: &a0 x\n".to_owned();
        for level in 1..20 {
            let (open, close) = ("[".repeat(60), "]".repeat(60));
            nested.extend([format!("a{level}: &a{level} {open}*a{} {close}\n", level - 1)]);
        }
        let brackets = "[".repeat(100_000);
        let dashes = "- ".repeat(100_000);
        for bomb in [aliases, nested, brackets, dashes] {
            documents(&bomb).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[-a-c:,&*?!|>'\"\\[\\]{}#%@<~ \n\t]{0,60}") {
            let _ = documents(&text);
        }
    }
}
