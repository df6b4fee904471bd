//! Which credential counts of those that were given: a flag, or else the environment's only one.

use std::path::{Path, PathBuf};

use super::parse;
use super::{Credential, CredentialError, GitHubJob, Proof, WorkloadIdentity};
use crate::secret::Secret;

/// A value that begins so names a file.
const FILE_PREFIX: &str = "file:";
/// The file that is stdin.
const STDIN: &str = "-";
/// The flag.
const FLAG: &str = "--auth-key";
/// The variables that a credential comes from, each also with this behind its name.
const NAMES: [&str; 6] =
    ["TS_AUTHKEY", "TS_AUTH_KEY", "TS_CLIENT_SECRET", "TS_CLIENT_ID", "TS_ID_TOKEN", "TS_AUDIENCE"];
const FILE_SUFFIX: &str = "_FILE";
/// What GitHub gives a job that may ask for tokens.
const GITHUB: (&str, &str) = ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN");

/// Whether what `file:PATH` names is stdin, which can be read only once.
#[must_use]
pub fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// Every variable that [`Credential::find`] heeds: what no child of ours has any business with.
pub fn variables() -> impl Iterator<Item = String> {
    let ours = NAMES.into_iter().flat_map(|name| [name.to_owned(), format!("{name}{FILE_SUFFIX}")]);
    ours.chain([GITHUB.0, GITHUB.1].map(str::to_owned))
}

impl Credential {
    /// The credential of the flag `--auth-key` or, without one, of the environment:
    ///
    /// * `TS_AUTHKEY` or `TS_AUTH_KEY`: an auth key, or an OAuth secret;
    /// * `TS_CLIENT_SECRET`: an OAuth secret;
    /// * `TS_CLIENT_ID` with `TS_ID_TOKEN`, or with `TS_AUDIENCE` on GitHub: a workload identity.
    ///
    /// Each also with `_FILE` behind its name; a value `file:PATH` names a file as well, `file:-` stdin. `variable` looks a
    /// variable up, `read` reads the file that the named flag or variable gave. `None`: there is no credential.
    ///
    /// # Errors
    /// When there are two, or one that can't be used.
    pub fn find<E: From<CredentialError>>(
        flag: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
        read: impl Fn(&str, &Path) -> Result<Secret, E>,
    ) -> Result<Option<Self>, E> {
        if let Some(value) = flag {
            let text = Given::new(FLAG, value).read(&read)?;
            return Ok(Some(Self::parse(FLAG, text.expose())?));
        }
        let environment = Environment(variable);
        let key = exclusive(environment.get("TS_AUTHKEY")?, environment.get("TS_AUTH_KEY")?)?;
        let secret = environment.get("TS_CLIENT_SECRET")?;
        let client_id = environment.get("TS_CLIENT_ID")?;
        let (token, audience) = (environment.get("TS_ID_TOKEN")?, environment.get("TS_AUDIENCE")?);
        // A client id alone is no credential: the OAuth client that a secret belongs to has one, too.
        let proof = token.as_ref().or(audience.as_ref());
        let chosen = exclusive(key.as_ref().or(secret.as_ref()), proof)?;
        exclusive(key.as_ref(), secret.as_ref())?;
        if let Some(key) = key {
            return Ok(Some(Self::parse(&key.from, key.read(&read)?.expose())?));
        }
        if let Some(secret) = secret {
            return Ok(Some(Self::parse_oauth_secret(&secret.from, secret.read(&read)?.expose())?));
        }
        let half = |given: &Given, missing| CredentialError::Half { given: given.from.clone(), missing };
        let Some(client_id) = client_id else {
            return chosen.map_or(Ok(None), |given| Err(half(given, "TS_CLIENT_ID").into()));
        };
        exclusive(token.as_ref(), audience.as_ref())?;
        let proof = match (token, audience) {
            (Some(token), _) => token.proof(&read)?,
            (None, Some(audience)) => environment.github_job(&audience, &read)?,
            (None, None) => return Err(half(&client_id, "TS_ID_TOKEN (or TS_AUDIENCE, on GitHub)").into()),
        };
        let (id, attributes) = parse::client_id(&client_id.from, client_id.read(&read)?.expose())?;
        Ok(Some(Self::WorkloadIdentity(WorkloadIdentity { client_id: id, attributes, proof })))
    }
}

/// What a flag or a variable gave, or the file that it named.
struct Given {
    from: String,
    at: At,
}

enum At {
    Here(Secret),
    File(PathBuf),
}

impl Given {
    fn new(from: &str, value: &str) -> Self {
        let at = match value.strip_prefix(FILE_PREFIX) {
            Some(path) => At::File(path.into()),
            None => At::Here(Secret::new(value.to_owned())),
        };
        Self { from: from.to_owned(), at }
    }

    fn read<E>(&self, read: &impl Fn(&str, &Path) -> Result<Secret, E>) -> Result<Secret, E> {
        match &self.at {
            At::Here(text) => Ok(text.clone()),
            At::File(path) => read(&self.from, path),
        }
    }

    /// As an identity provider's token. A file is looked into now, so that a mistake is told now.
    fn proof<E: From<CredentialError>>(&self, read: &impl Fn(&str, &Path) -> Result<Secret, E>) -> Result<Proof, E> {
        let token = parse::id_token(&self.from, self.read(read)?.expose())?;
        Ok(match &self.at {
            At::Here(_) => Proof::IdToken(token),
            At::File(path) if is_stdin(path) => Proof::IdToken(token),
            At::File(path) => Proof::IdTokenFile(path.clone()),
        })
    }
}

struct Environment<F>(F);

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    /// What a variable gives, or the one with `_FILE` behind its name. Empty ones count as unset: a workflow sets them so.
    fn get(&self, name: &str) -> Result<Option<Given>, CredentialError> {
        let set = |name: &str| (self.0)(name).filter(|value| !value.trim().is_empty());
        let file_name = format!("{name}{FILE_SUFFIX}");
        let file = set(&file_name).map(|path| Given { from: file_name, at: At::File(path.into()) });
        exclusive(set(name).map(|value| Given::new(name, value.trim())), file)
    }

    fn github_job<E: From<CredentialError>>(
        &self,
        audience: &Given,
        read: &impl Fn(&str, &Path) -> Result<Secret, E>,
    ) -> Result<Proof, E> {
        let set = |name| (self.0)(name).filter(|value| !value.trim().is_empty());
        let (Some(url), Some(bearer)) = (set(GITHUB.0), set(GITHUB.1)) else {
            return Err(CredentialError::NoIssuer { from: audience.from.clone() }.into());
        };
        let text = audience.read(read)?;
        let audience = parse::one_word(&audience.from, "audience", text.expose())?.to_owned();
        Ok(Proof::GitHub(GitHubJob { audience, url, bearer: Secret::new(bearer.trim().to_owned()) }))
    }
}

/// The one of the two that there is.
fn exclusive<T: AsRef<Given>>(first: Option<T>, second: Option<T>) -> Result<Option<T>, CredentialError> {
    if let (Some(first), Some(second)) = (&first, &second) {
        let (first, second) = (first.as_ref().from.clone(), second.as_ref().from.clone());
        return Err(CredentialError::Two { first, second });
    }
    Ok(first.or(second))
}

impl AsRef<Self> for Given {
    fn as_ref(&self) -> &Self {
        self
    }
}
