//! Randomness from the system.

use rand::SeedableRng as _;
use rand::rngs::{StdRng, SysRng};

/// A generator seeded by the system; the error is why it gives no seed.
pub(crate) fn rng() -> Result<StdRng, String> {
    StdRng::try_from_rng(&mut SysRng).map_err(|error| error.to_string())
}
