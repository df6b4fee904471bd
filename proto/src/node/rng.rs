//! One source of randomness for the node and its stack.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand_core::{CryptoRng, Rng as _, TryCryptoRng, TryRng};

/// Handles of the generator that the node was given.
#[derive(Clone)]
pub(super) struct SharedRng(Arc<Mutex<Box<dyn CryptoRng + Send>>>);

impl SharedRng {
    pub(super) fn new(rng: Box<dyn CryptoRng + Send>) -> Self {
        Self(Arc::new(Mutex::new(rng)))
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn CryptoRng + Send>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TryRng for SharedRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.lock().next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.lock().next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.lock().fill_bytes(bytes);
        Ok(())
    }
}

impl TryCryptoRng for SharedRng {}
