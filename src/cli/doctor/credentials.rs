//! What a start would log in with. Never shown.

use super::check::Check;
use crate::auth::{self, Credential};
use crate::cli::join::tags;
use crate::report::Exit;

/// Looks whether the environment has a credential that can be used. Reads the files that it names.
pub(super) fn check(has_agent: bool) -> Check {
    let name = "credential";
    let wrong = |why: String| Check::problem(name, Exit::Configuration, why, "see \"Ways to log in\" in the README");
    let found = match auth::find(None, |name| std::env::var(name).ok()) {
        Ok(found) => found,
        Err(error) => return wrong(error.to_string()),
    };
    let Some(credential) = found else {
        return if has_agent {
            Check::ok(name, "none in this environment; the running agent needs none")
        } else {
            Check::warning(
                name,
                "none in this environment",
                "set TS_AUTHKEY, or give --auth-key file:PATH at the start",
            )
        };
    };
    match tags(&std::env::var("TS_TAGS").unwrap_or_default()) {
        Ok(tags) => match credential.check_tags(&tags) {
            Ok(()) => Check::ok(name, kind(&credential)),
            Err(error) => Check::warning(name, error, "set TS_TAGS, or give --tags at the start"),
        },
        Err(failure) => Check::failed(name, &failure),
    }
}

fn kind(credential: &Credential) -> &'static str {
    match credential {
        Credential::AuthKey(_) => "an auth key is given",
        Credential::OauthSecret(_) => "an OAuth client's secret is given",
        Credential::WorkloadIdentity(_) => "a workload identity is given",
    }
}
