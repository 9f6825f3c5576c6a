//! Numbers with their units.

/// A count with separated thousands: `1,234,567`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in binary units: `812 B`, `14.2 MiB`, `512 GiB`.
pub(crate) fn bytes(value: u64) -> String {
    if value < 1024 {
        return format!("{value} B");
    }
    let mut scaled = value as f64 / 1024.0;
    let mut unit = "KiB";
    for next in ["MiB", "GiB", "TiB", "PiB", "EiB"] {
        if scaled < 1023.5 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    decimal(scaled, unit)
}

/// Microseconds: `85 us`, `1.3 ms`, `2.0 s`.
pub(crate) fn micros(value: u64) -> String {
    match value {
        0..1_000 => format!("{value} us"),
        1_000..999_950 => decimal(value as f64 / 1e3, "ms"),
        _ => decimal(value as f64 / 1e6, "s"),
    }
}

/// Milliseconds, as an age: `40 ms`, `1.2 s`, `3m 20s`.
pub(crate) fn millis(value: u64) -> String {
    match value {
        0..1_000 => format!("{value} ms"),
        1_000..60_000 => decimal(value as f64 / 1e3, "s"),
        _ => seconds(value / 1000),
    }
}

/// Seconds in the two largest units: `42s`, `3m 20s`, `5h 2m`, `12d 4h`.
pub(crate) fn seconds(value: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match value {
        0..MINUTE => format!("{value}s"),
        MINUTE..HOUR => format!("{}m {}s", value / MINUTE, value % MINUTE),
        HOUR..DAY => format!("{}h {}m", value / HOUR, value % HOUR / MINUTE),
        _ => format!("{}d {}h", value / DAY, value % DAY / HOUR),
    }
}

/// A share of 0 to 1 in per cent. What is not all never reads `100%`, what is not nothing never `0%`.
pub(crate) fn percent(part: f64) -> String {
    let hundredths = part * 100.0;
    match hundredths {
        h if h > 0.0 && h < 1.0 => "<1%".to_owned(),
        h if h > 99.0 && h < 100.0 => ">99%".to_owned(),
        h => format!("{h:.0}%"),
    }
}

fn decimal(value: f64, unit: &str) -> String {
    if value < 99.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        for (value, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn byte_units_never_show_a_fourth_digit_above_1023() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (102_350, "100 KiB"),
            (1_048_575, "1.0 MiB"),
            (14_889_779, "14.2 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn times() {
        assert_eq!([micros(85), micros(1_300), micros(999_960)], ["85 us", "1.3 ms", "1.0 s"]);
        assert_eq!([millis(40), millis(1_240), millis(200_000)], ["40 ms", "1.2 s", "3m 20s"]);
        assert_eq!([seconds(42), seconds(18_120), seconds(1_051_200)], ["42s", "5h 2m", "12d 4h"]);
    }

    #[test]
    fn a_share_that_is_not_all_is_not_shown_as_all() {
        assert_eq!(
            [percent(1.0), percent(0.9999), percent(0.5), percent(0.0001), percent(0.0)],
            ["100%", ">99%", "50%", "<1%", "0%"]
        );
    }
}
