//! Why there is no auth key.

use std::io;
use std::time::Duration;

use nixtail_proto::credential::{ApiError, ApiStep, CredentialError};

use crate::net::http::HttpError;

/// No credential, none that can be used, or no auth key for it. Never has a secret in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// It is none, or not the only one.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Its file can't be read.
    #[error("the file {path} (from {from}) can't be read: {source}; it must be a text file of at most 64 KiB")]
    File {
        /// What named the file.
        from: String,
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Who was asked for a key said no, or nothing that makes sense.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// An address that can't be asked.
    #[error("{step}: \"{url}\" is no URL that can be asked; {next}")]
    Url {
        /// What was to be asked for.
        step: ApiStep,
        /// The address.
        url: String,
        /// What to do.
        next: &'static str,
    },
    /// Nobody answered.
    #[error("{step}: {host} can't be reached: {why}; check the network, any firewall and HTTPS_PROXY")]
    Network {
        /// What was asked for.
        step: ApiStep,
        /// Who was asked.
        host: String,
        /// Why it failed.
        why: String,
    },
    /// This machine isn't fit to ask.
    #[error("{step}: {host} can't be asked: {why}")]
    Machine {
        /// What was asked for.
        step: ApiStep,
        /// Who was to be asked.
        host: String,
        /// What is missing.
        why: String,
    },
}

impl AuthError {
    /// Whether the other side decided so: nothing changes by trying again.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_refusal())
    }

    /// Whether the user's own words or machine are at fault: nothing changes by trying again.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Api(error) => error.is_configuration(),
            Self::Network { .. } => false,
            _ => true,
        }
    }

    /// When the other side wants to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Api(error) => error.retry_after(),
            _ => None,
        }
    }

    pub(super) fn of_http(step: ApiStep, host: &str, error: &HttpError) -> Self {
        let (host, why) = (host.to_owned(), error.to_string());
        match error {
            HttpError::NoAuthorities(_) => {
                let why =
                    format!("{why}; install the ca-certificates package, or name a file of them in SSL_CERT_FILE");
                Self::Machine { step, host, why }
            }
            HttpError::Proxy(_) => Self::Machine { step, host, why },
            _ => Self::Network { step, host, why },
        }
    }
}
