//! JSON values as block YAML.

use std::fmt::Write;

use serde_json::Value;

/// The value as a YAML document.
pub(crate) fn emit(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(_) | Value::Array(_) if !is_empty(value) => block(&mut out, value, 0, false),
        _ => {
            inline(&mut out, value);
            out.push('\n');
        }
    }
    out
}

/// Writes a non-empty collection. `after_dash`: the first line is already indented by the dash of a list.
fn block(out: &mut String, value: &Value, indent: usize, after_dash: bool) {
    let mut pad = if after_dash { 0 } else { indent };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let _ = write!(out, "{:pad$}{}:", "", scalar(key));
                child(out, value, indent);
                pad = indent;
            }
        }
        Value::Array(list) => {
            for value in list {
                let _ = write!(out, "{:pad$}-", "");
                match value {
                    Value::Object(_) | Value::Array(_) if !is_empty(value) => {
                        out.push(' ');
                        block(out, value, indent + 2, true);
                    }
                    _ => child(out, value, indent),
                }
                pad = indent;
            }
        }
        _ => {}
    }
}

fn child(out: &mut String, value: &Value, indent: usize) {
    if matches!(value, Value::Object(_) | Value::Array(_)) && !is_empty(value) {
        out.push('\n');
        block(out, value, indent + 2, false);
    } else {
        out.push(' ');
        inline(out, value);
        out.push('\n');
    }
}

fn inline(out: &mut String, value: &Value) {
    match value {
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(text) => out.push_str(&scalar(text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            let _ = write!(out, "{value}");
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// The string, quoted unless every reader takes it for the same plain string.
fn scalar(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 8] = ["true", "false", "null", "yes", "no", "on", "off", "y"];
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_'));
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '/' | '_' | '-' | '.' | ',' | '(' | ')' | '+');
    let word = WORDS.iter().any(|word| text.eq_ignore_ascii_case(word)) || text.eq_ignore_ascii_case("n");
    starts_well && text.chars().all(allowed) && !text.ends_with(' ') && !word
}

#[cfg(test)]
mod tests {
    use saphyr_parser::{Event, Parser, ScalarStyle};
    use serde_json::{Map, json};

    use super::*;

    /// What another reader makes of it, by the core schema: plain scalars may be something else than strings.
    fn read(parser: &mut dyn Iterator<Item = Event<'static>>) -> Option<Value> {
        Some(match parser.next()? {
            Event::Scalar(text, ScalarStyle::Plain, ..) => match &*text {
                "" | "~" | "null" | "Null" | "NULL" => Value::Null,
                "true" | "True" | "TRUE" | "yes" | "Yes" | "on" | "On" | "y" | "Y" => Value::Bool(true),
                "false" | "False" | "FALSE" | "no" | "No" | "off" | "Off" | "n" | "N" => Value::Bool(false),
                text if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) => {
                    serde_json::from_str(text).unwrap_or_else(|_| panic!("{text} is no plain number"))
                }
                text => Value::String(text.to_owned()),
            },
            Event::Scalar(text, ..) => Value::String(text.into_owned()),
            Event::SequenceStart(..) => Value::Array(std::iter::from_fn(|| read(parser)).collect()),
            Event::MappingStart(..) => {
                let mut map = Map::new();
                while let Some(key) = read(parser) {
                    let Value::String(key) = key else { panic!("{key} is no string") };
                    map.insert(key, read(parser).unwrap());
                }
                Value::Object(map)
            }
            Event::SequenceEnd | Event::MappingEnd => return None,
            other => panic!("{other:?}"),
        })
    }

    fn read_document(text: &str) -> Value {
        let events = Parser::new_from_iter(text.chars().collect::<Vec<_>>().into_iter());
        let mut events = events.map(|event| event.unwrap_or_else(|error| panic!("{error}\n{text}")).0).skip(2);
        read(&mut events).unwrap()
    }

    #[test]
    fn reads_back_as_what_it_was() {
        let value = json!({
            "plain": "connect4", "path": "/sys/fs/bpf", "empty": "", "spaces": " x ", "words": ["yes", "No", "null", "off", "~"],
            "numbers": [0, -3, 1.5, 18_000_000], "like numbers": ["12", "1.5", "0x1f", "1e3", ".inf", "12:30:45", "2024-01-01"],
            "marks": ["- a", "# no comment", "a: b", "a #b", "*a", "&a", "!t", "{a}", "[a]", "%x", "@x", "`x", "|", ">", "'q'", "\"q\"", "?"],
            "control": "a\nb\tc\u{1b}[2J\u{7f}\u{85}\u{2028}", "unicode": "Zürich → 東京", "back\\slash": "C:\\x",
            "v6": "::ffff:10.0.0.1", "nested": {"list": [[1, [2]], [], {}, {"a": {"b": [{"c": null}]}, "d": true}]},
            "none": {}, "key: odd": 1, "null": false,
        });
        let text = emit(&value);
        assert_eq!(read_document(&text), value, "{text}");
        assert_eq!(emit(&json!([])), "[]\n");
    }

    #[test]
    fn reads_well() {
        let value =
            json!({"pods": [{"name": "a", "open": 3}, {"name": "b", "addresses": ["10.0.0.1"]}], "healthy": true});
        let expected =
            "healthy: true\npods:\n  - name: a\n    open: 3\n  - addresses:\n      - \"10.0.0.1\"\n    name: b\n";
        assert_eq!(emit(&value), expected);
    }
}
