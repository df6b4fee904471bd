//! What may stand behind the `?` of an OAuth secret or a client id.

use serde::{Deserialize, Serialize};

use super::CredentialError;
use super::form;

/// What the keys shall be that are made with a credential.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attributes {
    /// Whether their nodes are ephemeral, where it was said. Unsaid, it is up to the node: ephemeral, unless it keeps its
    /// identity.
    pub ephemeral: Option<bool>,
    /// Whether their nodes need no approval.
    pub preauthorized: bool,
    /// Where the API is instead of its usual place; no slash at its end.
    pub base_url: Option<String>,
}

impl Attributes {
    /// Reads those of an OAuth secret: `ephemeral`, `preauthorized`, `baseURL`. An empty value counts as unsaid, as in Go.
    pub(super) fn of_oauth_secret(from: &str, query: &str) -> Result<Self, CredentialError> {
        let mut found = Found::read(from, query, &["ephemeral", "preauthorized", "baseURL"])?;
        let mut said = |name| match found.take(name).filter(|value| !value.is_empty()) {
            Some(value) => boolean(from, name, &value).map(Some),
            None => Ok(None),
        };
        let (ephemeral, preauthorized) = (said("ephemeral")?, said("preauthorized")?.unwrap_or_default());
        let base_url = found.take("baseURL").filter(|url| !url.is_empty());
        let base_url = base_url.map(|url| base_url_of(from, &url)).transpose()?;
        Ok(Self { ephemeral, preauthorized, base_url })
    }

    /// Reads those of a federated identity's client id: `ephemeral`, `preauthorized`. Go's client has a quirk that control's
    /// documentation doesn't tell: without a `?` nodes are ephemeral, with one they are only where that is said.
    pub(super) fn of_client_id(from: &str, query: Option<&str>) -> Result<Self, CredentialError> {
        let Some(query) = query else { return Ok(Self::default()) };
        let mut found = Found::read(from, query, &["ephemeral", "preauthorized"])?;
        let mut said = |name| found.take(name).map_or(Ok(false), |value| boolean(from, name, &value));
        Ok(Self { ephemeral: Some(said("ephemeral")?), preauthorized: said("preauthorized")?, base_url: None })
    }
}

/// The attributes that were given, all of them known.
struct Found(Vec<(String, String)>);

impl Found {
    fn read(from: &str, query: &str, known: &[&str]) -> Result<Self, CredentialError> {
        let pairs = form::read(query)
            .map_err(|error| CredentialError::Attributes { from: from.to_owned(), why: error.words() })?;
        match pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => Err(CredentialError::unknown_attribute(from, name, known)),
            None => Ok(Self(pairs)),
        }
    }

    /// The first value of that name, as Go takes it.
    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }
}

/// Go's `strconv.ParseBool`.
fn boolean(from: &str, name: &'static str, value: &str) -> Result<bool, CredentialError> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(CredentialError::AttributeValue { from: from.to_owned(), name, wanted: "true or false" }),
    }
}

fn base_url_of(from: &str, url: &str) -> Result<String, CredentialError> {
    let wrong =
        || CredentialError::AttributeValue { from: from.to_owned(), name: "baseURL", wanted: "http(s)://HOST[:PORT]" };
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).ok_or_else(wrong)?;
    let host = rest.split('/').next().unwrap_or_default();
    let is_plain = |character: char| !character.is_whitespace() && !character.is_control();
    if host.is_empty() || rest.contains(['?', '#', '@']) || !rest.chars().all(is_plain) {
        return Err(wrong());
    }
    Ok(url.trim_end_matches('/').to_owned())
}
