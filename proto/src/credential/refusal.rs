//! What to do when control refuses a registration.

/// What to do next, for the words in which control (Tailscale's, or headscale) refused a node. They are no interface and
/// may change; what isn't recognised gets the advice that is right for most.
#[must_use]
pub fn advice(reason: &str) -> &'static str {
    let has = |words: &[&str]| has(reason, words);
    if has(&["tag"]) {
        "each tag must stand in tagOwners (Access controls in the admin console) and belong to the auth key, \
         or to its maker"
    } else if is_used_up(reason) {
        "the key was good for one node: make another one (Keys in the admin console), reusable if several nodes share it"
    } else if has(&["expired"]) {
        "make a new auth key (Keys in the admin console, or `headscale preauthkeys create`)"
    } else if has(&["not valid", "invalid", "unknown", "not found", "revoked"]) {
        "the key isn't whole, was revoked, or is another tailnet's: make a new one (Keys in the admin console, or \
         `headscale preauthkeys create`) and compare the login server"
    } else {
        "make a new auth key (and see that it may have the tags asked for)"
    }
}

/// Whether those words say that the auth key was good for one node, and had one already.
#[must_use]
pub(crate) fn is_used_up(reason: &str) -> bool {
    has(reason, &["already been used", "already used", "used up"])
}

fn has(reason: &str, words: &[&str]) -> bool {
    let reason = reason.to_ascii_lowercase();
    words.iter().any(|word| reason.contains(word))
}
