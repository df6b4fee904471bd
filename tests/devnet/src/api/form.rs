//! `application/x-www-form-urlencoded`, as far as clients of OAuth write it.

use std::collections::BTreeMap;

/// The fields of a form or a query; what can't be read is left out.
pub(super) fn read(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter_map(|(a, b)| Some((decode(a)?, decode(b)?)))
        .collect()
}

/// A name or a value as it was meant.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}
