//! A person who can log in where there is no credential.

use std::fmt;
use std::sync::Arc;

/// Who is told of a login page: once a page. The words are for people; the URL is printable ASCII.
#[derive(Clone)]
pub struct Person(Arc<dyn Fn(&str) + Send + Sync>);

impl Person {
    /// One who is told by `show`, which gets the URL and shouldn't wait.
    pub fn new(show: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(show))
    }

    pub(super) fn show_login(&self, url: &str) {
        (self.0)(url);
    }
}

impl fmt::Debug for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Person")
    }
}
