//! What may be assumed of where text goes: a terminal of some size, with colours or without.

use std::os::fd::AsFd;

/// Where text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Characters in a line; `None` where nothing cuts lines: a file, a pipe.
    pub width: Option<usize>,
    /// Lines on the screen, where there is one.
    pub height: Option<usize>,
    /// Whether colours are wanted and understood.
    pub colour: bool,
}

/// How a piece of text looks, where there are colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Style {
    /// As the terminal writes.
    #[default]
    Plain,
    /// What stands out: a heading.
    Strong,
    /// What stands back: a unit, an explanation.
    Faint,
    /// Well.
    Good,
    /// Under way, or to be looked at.
    Notable,
    /// Wrong.
    Bad,
}

impl Terminal {
    /// No terminal: lines of any length, no colours.
    pub const NONE: Self = Self { width: None, height: None, colour: false };

    /// Looks at where `output` goes, and whether people want colours there: `NO_COLOR` (<https://no-color.org>) and
    /// `TERM=dumb` say no, `CLICOLOR_FORCE` says yes even where there is no terminal. `COLUMNS` is the width where a pipe
    /// hides the terminal.
    pub fn of(output: impl AsFd) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let is_terminal = rustix::termios::isatty(output.as_fd());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = !no_colour && (set("CLICOLOR_FORCE") || (is_terminal && !dumb));
        if !is_terminal {
            let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
            return Self { width: columns.filter(|columns| *columns > 0), height: None, colour };
        }
        // A terminal that doesn't know its size says 0: then the size that terminals have always had.
        let size = rustix::termios::tcgetwinsize(output.as_fd()).ok();
        let known = |number: Option<u16>, default| number.filter(|number| *number > 0).map_or(default, usize::from);
        Self {
            width: Some(known(size.map(|size| size.ws_col), 80)),
            height: Some(known(size.map(|size| size.ws_row), 24)),
            colour,
        }
    }

    /// `text` in that style, if there are colours.
    pub fn paint(&self, style: Style, text: &str) -> String {
        // The "select graphic rendition" sequences of ECMA-48.
        let code = match style {
            _ if !self.colour || text.is_empty() => return text.to_owned(),
            Style::Plain => return text.to_owned(),
            Style::Strong => "1",
            Style::Faint => "2",
            Style::Good => "32",
            Style::Notable => "33",
            Style::Bad => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// As much of `text` as fits into a line, with an ellipsis where something is left out. For text without colours.
    pub fn cut(&self, text: &str) -> String {
        self.width.map_or_else(|| text.to_owned(), |width| cut(text, width))
    }
}

/// At most `width` characters of `text`, the last of them an ellipsis where something is left out.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { kept } else { format!("{}…", kept.trim_end()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_counts_characters() {
        assert_eq!(
            (cut("äöü", 3), cut("äöü", 2), cut("a bc", 3), cut("x", 0)),
            ("äöü".into(), "ä…".into(), "a…".into(), String::new())
        );
    }

    #[test]
    fn a_file_is_no_terminal() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(Terminal::of(&file).height, None);
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        assert_eq!(Terminal::NONE.paint(Style::Bad, "x"), "x");
        let colourful = Terminal { colour: true, ..Terminal::NONE };
        assert_eq!(colourful.paint(Style::Bad, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(colourful.paint(Style::Plain, "x"), "x");
    }
}
