//! A Rust file as the rules see it. No parser: rustfmt's layout (checked elsewhere) says where things end.

/// A file, with and without the parts that most rules leave alone.
pub(crate) struct Source {
    /// Path from the repository's root.
    pub(crate) path: String,
    /// The lines as they are.
    pub(crate) all: Vec<String>,
    /// The same lines, emptied where they are comments or belong to a test module.
    pub(crate) code: Vec<String>,
}

/// A function and its length in lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) line: usize,
    pub(crate) length: usize,
}

impl Source {
    pub(crate) fn new(path: String, text: &str) -> Self {
        let all: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut code: Vec<String> = all.iter().map(|line| without_comment(line).to_owned()).collect();
        let tests: Vec<usize> =
            all.iter().enumerate().filter(|(_, line)| is_test_gate(line)).map(|(at, _)| at).collect();
        for start in tests {
            let end = block_end(&all, start + 1).unwrap_or(start);
            code.iter_mut().take(end + 1).skip(start).for_each(String::clear);
        }
        Self { path, all, code }
    }

    /// Whether the whole file is tests, by its place.
    pub(crate) fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/") || self.path.contains("/benches/")
    }

    /// Lines of the file without its test modules; comments count.
    pub(crate) fn length(&self) -> usize {
        let tests = self.all.iter().zip(&self.code).filter(|(line, code)| {
            let comment = line.trim_start().starts_with("//");
            code.is_empty() && !line.is_empty() && !comment
        });
        self.all.len() - tests.count()
    }

    /// The module of mesh-agent that the file belongs to.
    pub(crate) fn module(&self) -> Option<&str> {
        let path = self.path.strip_prefix("mesh-agent/src/")?;
        path.split('/').next().map(|name| name.trim_end_matches(".rs"))
    }

    /// Functions outside tests.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let starts = self.code.iter().enumerate().filter(|(_, line)| is_function(line));
        starts
            .filter_map(|(start, _)| {
                let end = block_end(&self.code, start)?;
                Some(Function { line: start + 1, length: end - start + 1 })
            })
            .collect()
    }

    /// Names after `crate::`, those of a `{...}` group each, with their lines.
    pub(crate) fn crate_paths(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for (index, line) in self.code.iter().enumerate() {
            for (at, prefix) in line.match_indices("crate::") {
                let rest = line.get(at + prefix.len()..).unwrap_or_default();
                if !starts_word(line, at) {
                    continue;
                }
                if rest.starts_with('{') {
                    let following = self.code.iter().skip(index + 1).map(String::as_str);
                    let text: Vec<&str> = std::iter::once(rest).chain(following).collect();
                    found.extend(group(&text.join(" ")).into_iter().map(|name| (index + 1, name)));
                } else {
                    found.push((index + 1, identifier(rest).to_owned()));
                }
            }
        }
        found
    }

    /// Lines with `text` as a path or word of its own.
    pub(crate) fn lines_with<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        let has = move |line: &String| line.match_indices(text).any(|(at, _)| starts_word(line, at));
        self.code.iter().enumerate().filter(move |(_, line)| has(line)).map(|(index, _)| index + 1)
    }
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        return "";
    }
    line.split_once(" // ").map_or(line, |(code, _)| code)
}

fn is_test_gate(line: &str) -> bool {
    line.trim() == "#[cfg(test)]"
}

fn is_function(line: &str) -> bool {
    let mut words = line.trim_start().split(' ');
    let modifier = |word: &&str| {
        matches!(*word, "pub" | "pub(crate)" | "pub(super)" | "async" | "const" | "unsafe" | "extern" | "\"C\"")
    };
    words.find(|word| !modifier(word)) == Some("fn")
}

/// The last line of the item that starts at `start`: rustfmt puts its closing brace at the item's own indentation.
fn block_end(lines: &[String], start: usize) -> Option<usize> {
    let first = lines.get(start)?;
    let indentation = first.len() - first.trim_start().len();
    for (index, line) in lines.iter().enumerate().skip(start) {
        let content = line.trim();
        if line.len() - line.trim_start().len() != indentation || content.is_empty() {
            continue;
        }
        let one_line = index == start && (content.ends_with('}') || content.ends_with(';'));
        if one_line || content == "}" || (index > start && content.ends_with(';') && content.starts_with(')')) {
            return Some(index);
        }
    }
    None
}

/// The names at the top level of `{a::{b, c}, d as e}`.
fn group(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut at_start) = (0, false);
    for (at, character) in text.char_indices() {
        match character {
            '{' => {
                depth += 1;
                at_start = depth == 1;
            }
            '}' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            ',' => at_start = depth == 1,
            c if at_start && !c.is_whitespace() => {
                names.push(identifier(text.get(at..).unwrap_or_default()).to_owned());
                at_start = false;
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// Whether what begins at `at` is not the tail of a longer name or path.
fn starts_word(line: &str, at: usize) -> bool {
    let before = line.get(..at).and_then(|text| text.chars().next_back());
    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("mesh-agent/src/proxy/mod.rs".to_owned(), text)
    }

    #[test]
    fn groups_over_several_lines_name_their_modules() {
        let text =
            "use crate::{\n    model::{Address, Mesh},\n    net,\n};\nuse super::x;\nfn f() { crate::sys::g(); }\n";
        let names: Vec<_> = source(text).crate_paths().into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["model", "net", "sys"]);
    }

    #[test]
    fn comments_and_test_modules_are_no_code() {
        let text = "// crate::app\n/// [`crate::cli`]\nfn f() {} // crate::admin\n#[cfg(test)]\nmod tests {\n    use crate::discovery;\n}\n";
        assert_eq!(source(text).crate_paths(), []);
        assert_eq!(source(text).length(), 3);
    }

    #[test]
    fn code_after_a_test_module_in_its_own_file_counts() {
        let text = "#[cfg(test)]\nmod tests;\nuse crate::app;\n";
        assert_eq!(source(text).crate_paths(), [(3, "app".to_owned())]);
    }

    #[test]
    fn functions_end_at_their_own_brace() {
        let text = "pub(crate) async fn f(\n    a: u8,\n) -> u8 {\n    if a > 1 {\n    }\n    a\n}\n\nfn g() {}\ntrait T {\n    fn h(&self);\n}\n";
        let lengths: Vec<_> = source(text).functions().into_iter().map(|function| function.length).collect();
        assert_eq!(lengths, [7, 1, 1]);
    }

    #[test]
    fn a_longer_name_is_not_the_name() {
        assert_eq!(source("use naya::x;\nuse crate::aya::x;\n").lines_with("aya::").count(), 0);
        assert_eq!(source("use aya::x;\n").lines_with("aya::").collect::<Vec<_>>(), [1]);
    }
}
