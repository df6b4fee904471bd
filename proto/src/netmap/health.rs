//! What control thinks is wrong with us, in words.

use std::collections::BTreeMap;
use std::fmt;

use crate::tailcfg::DisplayMessage;

/// The name that, with `null`, stands for all messages.
const ALL: &str = "*";
/// Messages that are kept. Control sends a handful.
const MOST_MESSAGES: usize = 64;
/// Characters of a line that are kept.
const MOST_CHARACTERS: usize = 1000;

/// What the messages of a stream have said of our health.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Of control servers from before capability version 117.
    old: Vec<String>,
    named: BTreeMap<String, DisplayMessage>,
}

impl Health {
    /// Takes the two fields of a message: `None` says nothing, an empty list is healthy, a `null` takes the message of that
    /// name away, and one named `*` all of them. Answers whether anything was said.
    pub(super) fn handle(
        &mut self,
        old: Option<Vec<String>>,
        named: Option<BTreeMap<String, Option<DisplayMessage>>>,
    ) -> bool {
        let is_said = old.is_some() || named.is_some();
        if let Some(old) = old {
            self.old = old;
        }
        let named = named.unwrap_or_default();
        if named.get(ALL).is_some_and(Option::is_none) {
            self.named.clear();
        }
        for (name, message) in named.into_iter().filter(|(name, _)| name != ALL) {
            match message {
                Some(message) if self.named.len() < MOST_MESSAGES || self.named.contains_key(&name) => {
                    self.named.insert(name, message);
                }
                // More than anybody reads.
                Some(_) => {}
                None => drop(self.named.remove(&name)),
            }
        }
        is_said
    }

    /// A line for each, the gravest first. The old ones count only where there are no new ones, as in Go.
    pub(super) fn lines(&self) -> Vec<String> {
        let cut = |line: String| line.chars().take(MOST_CHARACTERS).collect();
        if self.named.is_empty() {
            return self.old.iter().take(MOST_MESSAGES).cloned().map(cut).collect();
        }
        let mut messages: Vec<_> = self.named.values().collect();
        messages.sort_by_key(|message| message.severity);
        messages.into_iter().map(|message| cut(Line(message).to_string())).collect()
    }
}

/// A message on one line: `Title: text (label: URL)`.
struct Line<'a>(&'a DisplayMessage);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DisplayMessage { title, text, primary_action, .. } = self.0;
        match (title.is_empty(), text.is_empty()) {
            (false, false) => write!(f, "{title}: {text}")?,
            _ => write!(f, "{title}{text}")?,
        }
        match primary_action {
            Some(action) if action.label.is_empty() => write!(f, " ({})", action.url),
            Some(action) => write!(f, " ({}: {})", action.label, action.url),
            None => Ok(()),
        }
    }
}
