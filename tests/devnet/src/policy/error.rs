//! What is wrong with a policy file, and where.

/// Why a policy file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {words}")]
pub struct PolicyError {
    /// The line, from 1.
    pub line: usize,
    /// The character in it, from 1.
    pub column: usize,
    /// What is wrong there, and what would be right.
    pub words: String,
}

impl PolicyError {
    /// Something wrong at a byte of `text`.
    pub(super) fn new(text: &str, at: usize, words: String) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { line, column, words }
    }
}
