//! Durations on the command line: `500ms`, `10s`, `2m`, `1h`.

use std::time::Duration;

/// A duration, zero allowed.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => return Err(format!("{text:?} has no unit: write it like 500ms, 10s or 2m")),
        _ => return Err(format!("{text:?} is not a duration: write it like 500ms, 10s or 2m")),
    };
    let value: u64 =
        digits.parse().map_err(|_| format!("{text:?} is not a duration: write it like 500ms, 10s or 2m"))?;
    value.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long"))
}

/// A duration longer than zero.
pub(super) fn parse_positive(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// An interval; a bare number is seconds.
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(_) => parse_positive(&format!("{text}s")),
        Err(_) => parse_positive(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_interval("3"), Ok(Duration::from_secs(3)));
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(parse("10").unwrap_err(), "\"10\" has no unit: write it like 500ms, 10s or 2m");
        for text in ["", "s", "1.5s", "-1s", "10 s", "10sec", "1m30s", "٣s"] {
            assert!(parse(text).unwrap_err().contains("write it like 500ms, 10s or 2m"), "{text}");
        }
        assert!(parse("18446744073709551615h").unwrap_err().contains("too long"));
        assert!(parse_positive("0ms").is_err() && parse_interval("0").is_err());
    }
}
