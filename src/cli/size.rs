//! Sizes on the command line: `1GiB`, `500MiB`, `10G`, or bare bytes. Units are powers of 1024.

/// Reads a size in bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no size; write 1GiB, 500MiB or bytes"))?;
    let power = match unit {
        "" | "B" => 0,
        "K" | "KiB" => 1,
        "M" | "MiB" => 2,
        "G" | "GiB" => 3,
        "T" | "TiB" => 4,
        _ => return Err(format!("{unit:?} is no unit of size; use KiB, MiB, GiB or TiB")),
    };
    number.checked_mul(1 << (10 * power)).ok_or_else(|| format!("{text:?} is too large"))
}

/// A size for people, such as `15.6 GiB`.
pub(super) fn show_size(bytes: u64) -> String {
    let (unit, name) = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")]
        .into_iter()
        .find(|(unit, _)| bytes >= *unit)
        .unwrap_or((1 << 10, "KiB"));
    format!("{:.1} {name}", bytes as f64 / unit as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, size) in
            [("0", 0), ("17", 17), ("2KiB", 2048), ("1G", 1 << 30), ("1GiB", 1 << 30), ("3TiB", 3 << 40)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "G", "-1", "1.5GiB", "1GB", "99999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(show_size(16_750_372_454), "15.6 GiB");
        assert_eq!(show_size(512), "0.5 KiB");
    }
}
