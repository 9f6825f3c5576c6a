//! The part of the Go template language that the chart uses, with the functions of Helm that it calls. What is not
//! understood is an error: a chart that renders here renders the same with Helm.

use std::{collections::BTreeMap, iter::Peekable, vec::IntoIter};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Number, Value};

use super::yaml;

/// Templates that can be included, by name.
pub(super) type Defined = BTreeMap<String, Vec<Node>>;

/// A part of a template.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    Print(Expression),
    If { condition: Expression, then: Vec<Node>, otherwise: Vec<Node> },
    With { value: Expression, then: Vec<Node>, otherwise: Vec<Node> },
    Range { list: Expression, body: Vec<Node> },
}

/// What stands in an action.
#[derive(Clone, Debug)]
pub(super) enum Expression {
    Literal(Value),
    /// From the dot.
    Field(Vec<String>),
    Call(String, Vec<Expression>),
}

/// Text, or what stands between braces.
enum Piece {
    Text(String),
    Action(String),
}

/// Reads a file; what it defines goes into `defined`.
pub(super) fn parse(text: &str, defined: &mut Defined) -> Result<Vec<Node>> {
    let mut pieces = split(text)?.into_iter();
    let (nodes, end) = block(&mut pieces, defined)?;
    ensure!(end.is_none(), "an end, or else, too many");
    Ok(nodes)
}

/// Cuts at the braces; a dash beside them takes white space away.
fn split(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, next) = after.split_once("}}").context("braces that are not closed")?;
        let (action, trims) = action.strip_prefix('-').map_or((action, false), |action| (action, true));
        pieces.push(Piece::Text(if trims { before.trim_end() } else { before }.to_owned()));
        let (action, trims) = action.strip_suffix('-').map_or((action, false), |action| (action, true));
        rest = if trims { next.trim_start() } else { next };
        if !action.trim().starts_with("/*") {
            pieces.push(Piece::Action(action.trim().to_owned()));
        }
    }
    pieces.push(Piece::Text(rest.to_owned()));
    Ok(pieces)
}

/// Up to the action that ends the block, which is returned: `end`, or `else ...`.
fn block(pieces: &mut IntoIter<Piece>, defined: &mut Defined) -> Result<(Vec<Node>, Option<String>)> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        let (word, rest) = action.split_once(' ').unwrap_or((&action, ""));
        match word {
            "end" | "else" => return Ok((nodes, Some(action))),
            "define" => {
                let name = rest.trim().trim_matches('"').to_owned();
                let (body, _) = block(pieces, defined)?;
                defined.insert(name, body);
            }
            "if" => {
                let (then, otherwise) = branches(pieces, defined)?;
                nodes.push(Node::If { condition: expression(rest)?, then, otherwise });
            }
            "with" => {
                let (then, otherwise) = branches(pieces, defined)?;
                nodes.push(Node::With { value: expression(rest)?, then, otherwise });
            }
            "range" => {
                let (body, _) = block(pieces, defined)?;
                nodes.push(Node::Range { list: expression(rest)?, body });
            }
            _ => nodes.push(Node::Print(expression(&action)?)),
        }
    }
    Ok((nodes, None))
}

fn branches(pieces: &mut IntoIter<Piece>, defined: &mut Defined) -> Result<(Vec<Node>, Vec<Node>)> {
    let (then, end) = block(pieces, defined)?;
    match end.as_deref() {
        Some("end") => Ok((then, Vec::new())),
        Some("else") => Ok((then, block(pieces, defined)?.0)),
        other => bail!("{other:?} is not supported"),
    }
}

/// Words of an action: names, literals, parentheses and pipes.
fn words(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '(' | ')' | '|' => 1,
            '"' => rest[1..].find('"').context("a string that does not end")? + 2,
            _ => rest.find(|c: char| c.is_whitespace() || "()|".contains(c)).unwrap_or(rest.len()),
        };
        words.push(rest[..end].to_owned());
        rest = rest[end..].trim_start();
    }
    Ok(words)
}

fn expression(text: &str) -> Result<Expression> {
    let mut words = words(text)?.into_iter().peekable();
    let expression = pipeline(&mut words).with_context(|| format!("in {text:?}"))?;
    ensure!(words.next().is_none(), "too much in {text:?}");
    Ok(expression)
}

/// Each command gets what the one before it returned as its last argument.
fn pipeline(words: &mut Peekable<IntoIter<String>>) -> Result<Expression> {
    let mut value = command(words)?;
    while words.next_if(|word| word == "|").is_some() {
        match command(words)? {
            Expression::Call(name, mut arguments) => {
                arguments.push(value);
                value = Expression::Call(name, arguments);
            }
            other => bail!("{other:?} is no function"),
        }
    }
    Ok(value)
}

fn command(words: &mut Peekable<IntoIter<String>>) -> Result<Expression> {
    match operand(words)? {
        Expression::Call(name, mut arguments) if arguments.is_empty() => {
            while words.peek().is_some_and(|word| word != "|" && word != ")") {
                arguments.push(operand(words)?);
            }
            Ok(Expression::Call(name, arguments))
        }
        operand => Ok(operand),
    }
}

fn operand(words: &mut Peekable<IntoIter<String>>) -> Result<Expression> {
    let word = words.next().context("something is missing")?;
    Ok(match word.as_str() {
        "(" => {
            let inner = pipeline(words)?;
            ensure!(words.next().as_deref() == Some(")"), "a parenthesis that is not closed");
            // A value from now on, which takes no further arguments.
            Expression::Call("identity".to_owned(), vec![inner])
        }
        "true" | "false" => Expression::Literal(Value::Bool(word == "true")),
        _ if word.starts_with('"') => Expression::Literal(word.trim_matches('"').into()),
        _ if word.starts_with('.') => {
            Expression::Field(word.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect())
        }
        _ if word.starts_with(|c: char| c.is_ascii_digit()) => Expression::Literal(word.parse::<Number>()?.into()),
        _ => Expression::Call(word, Vec::new()),
    })
}

/// Writes nodes out.
pub(super) fn render(nodes: &[Node], dot: &Value, defined: &Defined, out: &mut String) -> Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(expression) => out.push_str(&text(&evaluate(expression, dot, defined)?)),
            Node::If { condition, then, otherwise } => {
                let branch = if truth(&evaluate(condition, dot, defined)?) { then } else { otherwise };
                render(branch, dot, defined, out)?;
            }
            Node::With { value, then, otherwise } => {
                let value = evaluate(value, dot, defined)?;
                if truth(&value) {
                    render(then, &value, defined, out)?;
                } else {
                    render(otherwise, dot, defined, out)?;
                }
            }
            Node::Range { list, body } => match evaluate(list, dot, defined)? {
                Value::Array(items) => items.iter().try_for_each(|item| render(body, item, defined, out))?,
                Value::Null => {}
                other => bail!("range over {other}"),
            },
        }
    }
    Ok(())
}

fn evaluate(expression: &Expression, dot: &Value, defined: &Defined) -> Result<Value> {
    match expression {
        Expression::Literal(value) => Ok(value.clone()),
        Expression::Field(path) => {
            let mut value = dot;
            for name in path {
                // Helm takes what is not there for nothing; here it is a slip in the chart.
                value = value.get(name).with_context(|| format!("no value .{}", path.join(".")))?;
            }
            Ok(value.clone())
        }
        Expression::Call(name, arguments) => {
            let values =
                arguments.iter().map(|argument| evaluate(argument, dot, defined)).collect::<Result<Vec<_>>>()?;
            call(name, &values, defined)
        }
    }
}

fn call(name: &str, arguments: &[Value], defined: &Defined) -> Result<Value> {
    Ok(match (name, arguments) {
        ("identity", [value]) => value.clone(),
        ("include", [Value::String(name), dot]) => {
            let nodes = defined.get(name).with_context(|| format!("no template {name:?}"))?;
            let mut out = String::new();
            render(nodes, dot, defined, &mut out)?;
            out.into()
        }
        ("default", [default, value]) => if truth(value) { value } else { default }.clone(),
        ("not", [value]) => (!truth(value)).into(),
        ("eq", [one, other]) => (one == other).into(),
        ("and", values) => values.iter().find(|value| !truth(value)).or(values.last()).context("and what?")?.clone(),
        ("or", values) => values.iter().find(|value| truth(value)).or(values.last()).context("or what?")?.clone(),
        ("add", values) => {
            values.iter().map(|value| value.as_i64().context("add takes numbers")).sum::<Result<i64>>()?.into()
        }
        ("quote", [value]) => format!("{:?}", text(value)).into(),
        ("printf", [Value::String(format), values @ ..]) => {
            let filled = values.iter().fold(format.clone(), |filled, value| filled.replacen("%s", &text(value), 1));
            filled.into()
        }
        ("toYaml", [value]) => yaml::write(value).trim_end().into(),
        ("indent" | "nindent", [width, value]) => {
            let margin = " ".repeat(usize::try_from(width.as_u64().context("a width")?)?);
            let start = if name == "nindent" { "\n" } else { "" };
            format!("{start}{margin}{}", text(value).replace('\n', &format!("\n{margin}"))).into()
        }
        _ => bail!("no function {name:?} of {} arguments", arguments.len()),
    })
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
