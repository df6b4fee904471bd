//! `application/x-www-form-urlencoded`, read and written as Go's `net/url` does.

use std::fmt::Write as _;

/// Why a query can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FormError {
    /// A `;`, which Go takes for a mistake.
    Semicolon,
    /// A `%` without two hexadecimal digits.
    Escape,
    /// Not UTF-8 once it is decoded.
    Text,
}

impl FormError {
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Semicolon => "a \";\" where \"&\" belongs",
            Self::Escape => "a \"%\" without two hexadecimal digits behind it",
            Self::Text => "bytes that are no UTF-8",
        }
    }
}

/// The pairs of a query, in their order. A name without `=` has an empty value.
pub(super) fn read(query: &str) -> Result<Vec<(String, String)>, FormError> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            if pair.contains(';') {
                return Err(FormError::Semicolon);
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

/// Writes pairs as a body or a query.
pub(super) fn write(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        encode(&mut text, name);
        text.push('=');
        encode(&mut text, value);
    }
    text
}

fn encode(into: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => into.push(char::from(byte)),
            b' ' => into.push('+'),
            _ => {
                // Writing to a String never fails.
                let _ = write!(into, "%{byte:02X}");
            }
        }
    }
}

fn decode(text: &str) -> Result<String, FormError> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit(), digit());
                let value = high.zip(low).map(|(high, low)| high << 4 | low);
                value.and_then(|value| u8::try_from(value).ok()).ok_or(FormError::Escape)?
            }
            _ => byte,
        });
    }
    String::from_utf8(decoded).map_err(|_| FormError::Text)
}
