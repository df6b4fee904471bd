//! Tables for people: columns as wide as what stands in them, and fewer where the terminal is narrow.

use super::terminal::{Style, Terminal, cut};

/// Between two columns.
const GAP: usize = 2;
/// No column that may be cut gets narrower than this.
const NARROWEST: usize = 10;

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its heading.
    pub title: &'static str,
    /// Whether it holds numbers, which stand at its right.
    pub right: bool,
    /// The columns with the highest rank go first where the terminal is narrow. Those of rank 0 stay, and are cut.
    pub rank: u8,
}

/// What stands in a row's column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Style,
}

/// A table, row by row.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
enum Row {
    Cells(Vec<Cell>),
    /// The first column's cell, and text over all others.
    Words(Cell, Cell),
    /// A line of its own, indented.
    Note(Cell),
}

impl Column {
    /// A column of text.
    pub const fn text(title: &'static str, rank: u8) -> Self {
        Self { title, right: false, rank }
    }

    /// A column of numbers.
    pub const fn number(title: &'static str, rank: u8) -> Self {
        Self { title, right: true, rank }
    }
}

impl Cell {
    /// Text in a style of its own.
    pub fn new(style: Style, text: impl Into<String>) -> Self {
        Self { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Style::Plain, text)
    }
}

impl Table {
    /// A table without rows.
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        self.rows.push(Row::Cells(cells.into()));
    }

    /// Adds a row with a cell for the first column and words over all the others.
    pub fn words(&mut self, first: impl Into<Cell>, words: impl Into<Cell>) {
        self.rows.push(Row::Words(first.into(), words.into()));
    }

    /// Adds a line that belongs to the row above it.
    pub fn note(&mut self, words: impl Into<Cell>) {
        self.rows.push(Row::Note(words.into()));
    }

    /// The lines of the table, none wider than the terminal.
    pub fn lines(&self, terminal: &Terminal) -> Vec<String> {
        let (shown, widths) = self.fit(terminal.width);
        let total = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        let titles: Vec<Cell> = self.columns.iter().map(|column| Cell::new(Style::Faint, column.title)).collect();
        let mut lines = vec![self.line(&titles, &shown, &widths, terminal)];
        for row in &self.rows {
            lines.push(match row {
                Row::Cells(cells) => self.line(cells, &shown, &widths, terminal),
                Row::Words(first, words) => {
                    let width = widths.first().copied().unwrap_or_default();
                    let room = terminal.width.unwrap_or(usize::MAX).max(total).saturating_sub(width + GAP);
                    let (first, words) = (pad(first, width, false, terminal), paint(words, room, terminal));
                    format!("{first}{:GAP$}{words}", "")
                }
                Row::Note(words) => {
                    let room = terminal.width.map_or(usize::MAX, |width| width.saturating_sub(GAP));
                    format!("{:GAP$}{}", "", paint(words, room, terminal))
                }
            });
        }
        lines.iter().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Which columns are shown, and how wide each of them is.
    fn fit(&self, width: Option<usize>) -> (Vec<usize>, Vec<usize>) {
        let natural: Vec<usize> = (0..self.columns.len()).map(|index| self.natural(index)).collect();
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let total = |shown: &[usize]| {
            shown.iter().filter_map(|index| natural.get(*index)).sum::<usize>() + GAP * shown.len().saturating_sub(1)
        };
        let Some(width) = width else {
            let widths = natural.clone();
            return (shown, widths);
        };
        let rank = |index: usize| self.columns.get(index).map_or(0, |column| column.rank);
        while total(&shown) > width {
            // Of equal rank, the last goes first.
            let expendable =
                shown.iter().copied().filter(|index| rank(*index) > 0).max_by_key(|index| (rank(*index), *index));
            let Some(expendable) = expendable else { break };
            shown.retain(|index| *index != expendable);
        }
        let mut widths: Vec<usize> = shown.iter().filter_map(|index| natural.get(*index).copied()).collect();
        let mut excess = total(&shown).saturating_sub(width);
        for width in &mut widths {
            let less = excess.min(width.saturating_sub(NARROWEST));
            *width -= less;
            excess -= less;
        }
        (shown, widths)
    }

    fn natural(&self, index: usize) -> usize {
        let title = self.columns.get(index).map_or(0, |column| column.title.chars().count());
        let cells = self.rows.iter().filter_map(|row| match row {
            Row::Cells(cells) => cells.get(index),
            Row::Words(first, _) => Some(first).filter(|_| index == 0),
            Row::Note(_) => None,
        });
        cells.map(|cell| cell.text.chars().count()).max().unwrap_or_default().max(title)
    }

    fn line(&self, cells: &[Cell], shown: &[usize], widths: &[usize], terminal: &Terminal) -> String {
        let empty = Cell::default();
        let cells = shown.iter().zip(widths).map(|(index, width)| {
            let right = self.columns.get(*index).is_some_and(|column| column.right);
            pad(cells.get(*index).unwrap_or(&empty), *width, right, terminal)
        });
        cells.collect::<Vec<_>>().join(&" ".repeat(GAP))
    }
}

fn paint(cell: &Cell, room: usize, terminal: &Terminal) -> String {
    terminal.paint(cell.style, &cut(&cell.text, room))
}

/// Padding stands outside of the colours, so that what is at a line's end can be taken off.
fn pad(cell: &Cell, width: usize, right: bool, terminal: &Terminal) -> String {
    let text = cut(&cell.text, width);
    let padding = " ".repeat(width.saturating_sub(text.chars().count()));
    let painted = terminal.paint(cell.style, &text);
    if right { padding + &painted } else { painted + &padding }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([
            Column::text("NAME", 0),
            Column::text("SYSTEM", 2),
            Column::number("CORES", 1),
            Column::number("LOAD", 3),
        ]);
        table.row(["builder-1".into(), "x86_64-linux".into(), "16".into(), "0.52".into()]);
        table.note("hello-2.12 (3 s)");
        table.words("b", "not in the netmap");
        table
    }

    fn at(width: usize) -> Vec<String> {
        table().lines(&Terminal { width: Some(width), ..Terminal::NONE })
    }

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let expected = [
            "NAME       SYSTEM        CORES  LOAD",
            "builder-1  x86_64-linux     16  0.52",
            "  hello-2.12 (3 s)",
            "b          not in the netmap",
        ];
        assert_eq!(table().lines(&Terminal::NONE), expected);
        assert_eq!(at(36), expected);
    }

    #[test]
    fn a_narrow_terminal_gets_fewer_columns() {
        assert_eq!(at(35)[1], "builder-1  x86_64-linux     16");
        assert_eq!(at(20)[..2], ["NAME       CORES", "builder-1     16"]);
        assert_eq!(at(12)[1..], ["builder-1", "  hello-2.1…", "b          …"]);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in 13..60 {
            for line in at(width) {
                assert!(line.chars().count() <= width, "{width}: {line:?}");
            }
        }
    }

    #[test]
    fn colours_take_no_room() {
        let mut table = Table::new([Column::text("NAME", 0), Column::number("FAILED", 0)]);
        table.row([Cell::new(Style::Good, "a"), Cell::new(Style::Bad, "3")]);
        let lines = table.lines(&Terminal { colour: true, ..Terminal::NONE });
        assert_eq!(lines[1], "\x1b[32ma\x1b[0m          \x1b[31m3\x1b[0m");
    }
}
