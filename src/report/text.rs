//! Text from peers and from control, before a person sees it.

/// The most characters of untrusted text that are shown at once: a long line, not a screenful.
const MAX_CHARACTERS: usize = 512;

/// Makes untrusted text fit to print: one line, no control or bidirectional-formatting characters, bounded.
pub fn plain(text: &str) -> String {
    let mut shown = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == MAX_CHARACTERS {
            shown.push('…');
            break;
        }
        match character {
            '\n' | '\t' => shown.push(' '),
            // Formatting characters that reorder what stands beside them.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            character if character.is_control() => {}
            character => shown.push(character),
        }
    }
    shown
}

/// Makes untrusted text fit for Markdown: [`plain`], and nothing in it is markup, a link or a column's end.
pub fn markdown(text: &str) -> String {
    let mut escaped = String::new();
    for character in plain(text).chars() {
        match character {
            // GitHub looks for mentions after the Markdown is read; an empty comment parts the name from the sign.
            '@' => escaped.push_str("@<!-- -->"),
            // A backslash before any ASCII punctuation is that character (CommonMark 0.31, 2.4).
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '<' | '>' | '#' | '+' | '!' | '|' | '~' | '&' | ':'
            | '$' | '^' => {
                escaped.push('\\');
                escaped.push(character);
            }
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_reordering_are_taken_out() {
        assert_eq!(plain("a\u{1b}[31mb\r\nc\u{202e}d\u{9b}e"), "a[31mb cde");
    }

    #[test]
    fn markup_is_shown_and_does_nothing() {
        assert_eq!(markdown("a | <b> [x](http://y) *z* `q`"), r"a \| \<b\> \[x\](http\://y) \*z\* \`q\`");
        assert_eq!(markdown("x\n# @root"), r"x \# @<!-- -->root");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(plain(&"x".repeat(10_000)).chars().count(), MAX_CHARACTERS + 1);
    }
}
