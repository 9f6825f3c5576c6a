//! Queries of request targets: `name=value&name=value`, percent-encoded
//! (<https://www.rfc-editor.org/rfc/rfc3986#section-2.1>).

use std::fmt::Write;

/// The first value of that name, decoded. `None` also where it is not UTF-8, or not encoded as it should be.
pub(crate) fn value(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(own, _)| *own == name)?;
    decode(value)
}

/// A value as it goes into a query.
pub(crate) fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn decode(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |digit: Option<u8>| char::from(digit?).to_digit(16);
            bytes.push((digit(rest.next())? * 16 + digit(rest.next())?) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back() {
        for text in ["", "shop/cart-0", "2001:db8::1", "a&b=c%d e", "Bücher/\u{1F980}"] {
            assert_eq!(value(&format!("x=1&source={}&port=80", encode(text)), "source").as_deref(), Some(text));
        }
        assert_eq!(encode("a&b=c%"), "a%26b%3Dc%25");
    }

    #[test]
    fn what_is_not_encoded_as_it_should_be_is_none() {
        for query in ["source=%", "source=%4", "source=%zz", "source=%ff", "destination=x", "source", ""] {
            assert_eq!(value(query, "source"), None, "{query}");
        }
    }
}
