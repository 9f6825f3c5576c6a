//! What is said on a connection: pure, bytes in, next step out.

/// The kinds of conversation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// HTTP, many requests on a connection.
    HttpKeep,
    /// HTTP, one request on a connection, which the server closes.
    HttpClose,
    /// The server speaks first: greeting, one command, farewell; then it closes.
    Greeter,
}

const KEEP: &[u8] = b"GET / HTTP/1.1\r\nHost: app\r\nUser-Agent: mesh-load\r\nAccept: */*\r\n\r\n";
const CLOSE: &[u8] =
    b"GET / HTTP/1.1\r\nHost: app\r\nUser-Agent: mesh-load\r\nAccept: */*\r\nConnection: close\r\n\r\n";

impl Kind {
    /// What the client says when connected, and again for each further request.
    pub(crate) fn opening(self) -> Option<&'static [u8]> {
        match self {
            Self::HttpKeep => Some(KEEP),
            Self::HttpClose => Some(CLOSE),
            Self::Greeter => None,
        }
    }

    /// Whether the conversation ends with the server closing.
    pub(crate) fn ends_with_close(self) -> bool {
        self != Self::HttpKeep
    }
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read on.
    More,
    /// Say this.
    Say(&'static [u8]),
    /// The answer is complete.
    Done,
    /// The answer is wrong.
    Wrong(&'static str),
}

/// The client's side of a conversation, between its start and its end.
pub(crate) struct Dialogue {
    kind: Kind,
    /// Bytes of an incomplete head or line.
    partial: Vec<u8>,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    Body { left: usize },
    Banner,
    Reply,
    Farewell,
    End,
}

impl Dialogue {
    /// At the start.
    pub(crate) fn new(kind: Kind) -> Self {
        let mut dialogue = Self { kind, partial: Vec::new(), at: At::Head };
        dialogue.restart();
        dialogue
    }

    /// Back to the start, for the next request.
    pub(crate) fn restart(&mut self) {
        self.partial.clear();
        self.at = if self.kind == Kind::Greeter { At::Banner } else { At::Head };
    }

    /// Whether the server may close here.
    pub(crate) fn may_end(&self) -> bool {
        self.kind.ends_with_close() && self.at == At::End
    }

    /// Takes what arrived.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> Step {
        match self.at {
            At::Head => self.head(bytes),
            At::Body { left } => self.body(left, bytes.len()),
            At::Banner | At::Reply | At::Farewell => self.line(bytes),
            At::End => Step::Wrong("bytes after the end of the answer"),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Step {
        // Nearly always the head is whole in the first read: then it isn't copied.
        let parsed = if self.partial.is_empty() {
            parse_head(bytes)
        } else {
            self.partial.extend_from_slice(bytes);
            parse_head(&self.partial)
        };
        match parsed {
            Head::Complete { head, body } => {
                let have = if self.partial.is_empty() { bytes.len() } else { self.partial.len() } - head;
                self.body(body, have)
            }
            Head::Partial => {
                if self.partial.is_empty() {
                    self.partial.extend_from_slice(bytes);
                }
                if self.partial.len() > 65_536 { Step::Wrong("endless response head") } else { Step::More }
            }
            Head::Wrong(why) => Step::Wrong(why),
        }
    }

    fn body(&mut self, left: usize, have: usize) -> Step {
        match left.checked_sub(have) {
            Some(0) => {
                self.at = At::End;
                if self.kind.ends_with_close() { Step::More } else { Step::Done }
            }
            Some(left) => {
                self.at = At::Body { left };
                Step::More
            }
            None => Step::Wrong("more bytes than Content-Length says"),
        }
    }

    fn line(&mut self, bytes: &[u8]) -> Step {
        self.partial.extend_from_slice(bytes);
        if self.partial.last() != Some(&b'\n') {
            return if self.partial.len() > 4096 { Step::Wrong("endless line") } else { Step::More };
        }
        let (code, step, at): (&[u8], _, _) = match self.at {
            At::Banner => (b"220 ", Step::Say(b"NOOP\r\n"), At::Reply),
            At::Reply => (b"250 ", Step::Say(b"QUIT\r\n"), At::Farewell),
            _ => (b"221 ", Step::More, At::End),
        };
        if !self.partial.starts_with(code) {
            return Step::Wrong("unexpected reply code");
        }
        self.partial.clear();
        self.at = at;
        step
    }
}

enum Head {
    Complete { head: usize, body: usize },
    Partial,
    Wrong(&'static str),
}

fn parse_head(bytes: &[u8]) -> Head {
    const LENGTH: &[u8] = b"content-length:";
    let mut body = None;
    let mut end = 0;
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        end += line.len();
        if line.last() != Some(&b'\n') {
            return Head::Partial;
        }
        if index == 0 {
            if !line.starts_with(b"HTTP/1.1 200") {
                return Head::Wrong("status is not 200");
            }
        } else if line.len() <= 2 {
            return body.map_or(Head::Wrong("no Content-Length"), |body| Head::Complete { head: end, body });
        } else if let Some((name, value)) = line.split_at_checked(LENGTH.len())
            && name.eq_ignore_ascii_case(LENGTH)
        {
            body = str::from_utf8(value).ok().and_then(|value| value.trim().parse().ok());
        }
    }
    Head::Partial
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-LENGTH: 5\r\n\r\nhello";

    #[test]
    fn a_kept_response_ends_with_its_body_however_it_is_cut() {
        for cut in 1..ANSWER.len() {
            let mut dialogue = Dialogue::new(Kind::HttpKeep);
            let (first, second) = ANSWER.split_at(cut);
            assert_eq!(dialogue.hear(first), Step::More, "cut at {cut}");
            assert_eq!(dialogue.hear(second), Step::Done, "cut at {cut}");
        }
    }

    #[test]
    fn a_closing_response_ends_with_the_close_and_not_before_its_body() {
        let mut dialogue = Dialogue::new(Kind::HttpClose);
        let (first, second) = ANSWER.split_at(ANSWER.len() - 1);
        assert_eq!(dialogue.hear(first), Step::More);
        assert!(!dialogue.may_end());
        assert_eq!(dialogue.hear(second), Step::More);
        assert!(dialogue.may_end());
    }

    #[test]
    fn an_error_or_a_wrong_length_is_a_failure() {
        let hear = |bytes: &[u8]| Dialogue::new(Kind::HttpKeep).hear(bytes);
        assert_eq!(hear(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), Step::Wrong("status is not 200"));
        assert_eq!(hear(b"HTTP/1.1 200 OK\r\n\r\n"), Step::Wrong("no Content-Length"));
        assert!(matches!(hear(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab"), Step::Wrong(_)));
    }

    #[test]
    fn the_greeter_is_awaited_before_anything_is_said() {
        let mut dialogue = Dialogue::new(Kind::Greeter);
        assert_eq!(Kind::Greeter.opening(), None);
        assert_eq!(dialogue.hear(b"220 he"), Step::More);
        assert_eq!(dialogue.hear(b"llo\r\n"), Step::Say(b"NOOP\r\n"));
        assert_eq!(dialogue.hear(b"250 ok\r\n"), Step::Say(b"QUIT\r\n"));
        assert!(!dialogue.may_end());
        assert_eq!(dialogue.hear(b"221 bye\r\n"), Step::More);
        assert!(dialogue.may_end());
    }
}
