//! Which builders have taken our claim.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nixtail_proto::key::NodePublic;

/// The builders that have taken our claim, until they are stopped or gone: one that fails a later step is among them.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<BTreeMap<String, Claim>>);

/// What it takes to reach a claimed builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) node_key: NodePublic,
    pub(super) host_keys: Vec<String>,
}

impl Claims {
    pub(super) fn all(&self) -> BTreeMap<String, Claim> {
        self.lock().clone()
    }

    pub(super) fn add(&self, name: &str, claim: Claim) {
        self.lock().insert(name.to_owned(), claim);
    }

    /// Forgets a claim, unless there is a newer one on a builder of the same name.
    pub(super) fn forget(&self, name: &str, claim: &Claim) {
        let mut claims = self.lock();
        if claims.get(name) == Some(claim) {
            claims.remove(name);
        }
    }

    /// Forgets those on nodes that are in the tailnet no more.
    pub(super) fn keep(&self, is_there: impl Fn(&NodePublic) -> bool) {
        self.lock().retain(|_, claim| is_there(&claim.node_key));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_lasts_until_its_builder_is_stopped_or_gone() {
        let claim = |key: u8| Claim { node_key: NodePublic::from_bytes([key; 32]), host_keys: vec![key.to_string()] };
        let claims = Claims::default();
        claims.add("a", claim(1));
        claims.add("b", claim(2));
        claims.keep(|key| *key == claim(1).node_key);
        assert_eq!(claims.all().into_keys().collect::<Vec<_>>(), ["a"]);
        claims.add("a", claim(3));
        claims.forget("a", &claim(1));
        assert_eq!(claims.all()["a"], claim(3), "the older builder's end isn't the newer one's");
        claims.forget("a", &claim(3));
        assert!(claims.all().is_empty());
    }
}
