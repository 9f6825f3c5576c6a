//! Colour, and text that is safe on a terminal.

use std::{fmt::Write, io::IsTerminal};

/// What a text says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing.
    #[default]
    Plain,
    /// A heading.
    Bold,
    /// Of little interest, such as a zero.
    Dim,
    /// As it should be.
    Good,
    /// Works, but look.
    Warn,
    /// Broken.
    Bad,
}

/// Whether tones become colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    colour: bool,
}

impl Paint {
    /// No colours.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colour: false };

    /// Colours if `stream` is a terminal, `--no-color` was not given and NO_COLOR is unset or empty.
    pub(crate) fn for_stream(stream: &impl IsTerminal, no_color: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: !no_color && !unwanted && stream.is_terminal() }
    }

    /// The text in its tone. Control characters are made visible: names come from files that others write.
    pub(crate) fn tone(self, text: &str, tone: Tone) -> String {
        let text = printable(text);
        let code = match tone {
            Tone::Plain => return text,
            Tone::Bold => "1",
            Tone::Dim => "2",
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text }
    }
}

/// The text with control characters escaped.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// Appends `text`, broken between words at `width` columns, each line after `indent` spaces.
pub(crate) fn wrap(out: &mut String, text: &str, indent: usize, width: usize) {
    let text = printable(text);
    let mut column = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let length = word.chars().count();
        if column == 0 {
            let _ = write!(out, "{:indent$}", "");
            column = indent;
        } else if column + 1 + length > width {
            let _ = write!(out, "\n{:indent$}", "");
            column = indent;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escape_sequence_in_a_name_does_not_reach_the_terminal() {
        assert_eq!(Paint::PLAIN.tone("pod\x1b[2J\n", Tone::Bad), "pod\\u{1b}[2J\\n");
        assert_eq!(Paint { colour: true }.tone("x\x07", Tone::Bad), "\x1b[31mx\\u{7}\x1b[0m");
    }

    #[test]
    fn wraps_between_words() {
        let mut out = String::new();
        wrap(&mut out, "one two three fourteen", 2, 12);
        assert_eq!(out, "  one two\n  three\n  fourteen\n");
    }
}
