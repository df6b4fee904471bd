//! Two ways to control, of which one may be blocked or lead astray.

use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use tokio::time::sleep;

use crate::control::ControlError;

/// The first of two attempts that works. `one` gets a lead, or begins together with the other where that is zero; if it fails
/// within it, the other begins at once. That one of them fails ends nothing.
///
/// # Errors
/// If both fail: a failed handshake before all else, since it tells of control itself, and else that of `one`.
pub(super) async fn race<T>(
    one: impl Future<Output = Result<T, ControlError>>,
    other: impl Future<Output = Result<T, ControlError>>,
    lead: Duration,
) -> Result<T, ControlError> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    if !lead.is_zero() {
        match select(one.as_mut(), pin!(sleep(lead))).await {
            Either::Left((Ok(done), _)) => return Ok(done),
            Either::Left((Err(error), _)) => return other.await.map_err(|second| worse(error, second)),
            Either::Right(_) => {}
        }
    }
    match select(one.as_mut(), other.as_mut()).await {
        Either::Left((Ok(done), _)) | Either::Right((Ok(done), _)) => Ok(done),
        Either::Left((Err(error), other)) => other.await.map_err(|second| worse(error, second)),
        Either::Right((Err(second), one)) => one.await.map_err(|error| worse(error, second)),
    }
}

fn worse(one: ControlError, other: ControlError) -> ControlError {
    if matches!(other, ControlError::Handshake { .. }) { other } else { one }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, pending, ready};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn good(n: u8) -> Ready<Result<u8, ControlError>> {
        ready(Ok(n))
    }
    fn bad(text: &str) -> Ready<Result<u8, ControlError>> {
        ready(Err(ControlError::protocol("x", text)))
    }
    fn broken_off() -> Ready<Result<u8, ControlError>> {
        ready(Err(ControlError::handshake("x", "it hung up")))
    }

    #[tokio::test]
    async fn the_first_that_works_wins() {
        for lead in [Duration::ZERO, Duration::from_millis(1)] {
            assert_eq!(race(bad("one"), good(2), lead).await.unwrap(), 2);
            assert_eq!(race(good(1), bad("other"), lead).await.unwrap(), 1);
            assert_eq!(race(pending(), good(2), lead).await.unwrap(), 2);
            assert_eq!(race(good(1), pending(), lead).await.unwrap(), 1);
            let both = race(bad("one"), bad("other"), lead).await.unwrap_err();
            assert!(both.to_string().contains("one"), "{both}");
            let both = race(bad("one"), broken_off(), lead).await.unwrap_err();
            assert!(matches!(both, ControlError::Handshake { .. }), "{both}");
        }
        assert_eq!(race(bad("one"), good(2), LONG).await.unwrap(), 2, "a failure ends the lead");
    }
}
