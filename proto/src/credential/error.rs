//! What can be wrong with a credential before anybody is asked.

/// A longer name of an attribute isn't shown: it stands behind a secret, and a slip may have put the secret there.
const SHOWN_NAME: usize = 20;

/// Why there is no usable credential. Never has a secret in it; `from` is the flag or variable, and not its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// There are two, and which of them is meant can't be told.
    #[error("{first} and {second} are both set, and which of them is meant can't be told; unset one of them")]
    Two {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// Part of a workload identity is missing.
    #[error("{given} is set and {missing} isn't: a workload identity needs both; set it, or unset {given}")]
    Half {
        /// What there is.
        given: String,
        /// What there should be.
        missing: &'static str,
    },
    /// An audience was given, and this is no job of GitHub's that may ask for tokens.
    #[error(
        "{from} is set, and there is nobody to ask for a token: outside of GitHub Actions set TS_ID_TOKEN or \
         TS_ID_TOKEN_FILE instead; on GitHub, give the job \"permissions: id-token: write\""
    )]
    NoIssuer {
        /// What gave the audience.
        from: String,
    },
    /// There is nothing, or more than one word.
    #[error("{from} holds no {what}: it must be one line without spaces")]
    Malformed {
        /// What gave it.
        from: String,
        /// What it should be.
        what: &'static str,
    },
    /// Its file wasn't read to its end.
    #[error("{from}: reading its file was given up; try again")]
    Unread {
        /// What gave it.
        from: String,
    },
    /// It is something else of Tailscale's.
    #[error("{from} holds {what}; {next}")]
    Other {
        /// What gave it.
        from: String,
        /// What it is.
        what: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// What stands behind the `?` can't be read.
    #[error("what stands behind the \"?\" of {from} can't be read: it has {why}; write NAME=VALUE&NAME=VALUE")]
    Attributes {
        /// What gave it.
        from: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An attribute that doesn't exist.
    #[error("{from} has the attribute \"{name}\", which doesn't exist; there are {known}")]
    UnknownAttribute {
        /// What gave it.
        from: String,
        /// Its name, unless that may be anything else.
        name: String,
        /// What would be right.
        known: String,
    },
    /// An attribute with a value that it can't have.
    #[error("the attribute {name} of {from} has a value that it can't have; it takes {wanted}")]
    AttributeValue {
        /// What gave it.
        from: String,
        /// Which attribute.
        name: &'static str,
        /// What would be right.
        wanted: &'static str,
    },
    /// Keys are to be made, and for no tag.
    #[error(
        "{what} makes keys for tags, and no tag was named; give --tags (or TS_TAGS) all tags of the client, or some that they own"
    )]
    NoTags {
        /// Who makes the keys.
        what: &'static str,
    },
}

impl CredentialError {
    pub(super) fn unknown_attribute(from: &str, name: &str, known: &[&str]) -> Self {
        let is_shown = name.len() <= SHOWN_NAME && name.chars().all(|c| c.is_ascii_alphabetic());
        let name = if is_shown { name } else { "…" };
        Self::UnknownAttribute { from: from.to_owned(), name: name.to_owned(), known: known.join(", ") }
    }
}
