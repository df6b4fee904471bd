//! Whether a control server answers, for a person who asks. Nothing is registered.

use nixtail_proto::proxy::Proxies;

use super::ControlError;
use super::server::Server;

/// Asks the login server for its key. Gives the header `Date` of its answer.
///
/// # Errors
/// What a login would fail with as well.
pub(crate) async fn knock(url: &str, proxies: &Proxies) -> Result<Option<String>, ControlError> {
    let (_key, date) = Server::parse(url)?.ask_key(proxies).await?;
    Ok(date)
}
