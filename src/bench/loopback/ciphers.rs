//! What SSH adds where a stream is an SSH session: its ciphers, from the same library that ours has them from.
#![cfg(feature = "ssh-nix")]

use ring::aead::{AES_128_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::budget::{Budget, Meter};
use super::{Ends, LoopbackError, StageName};

/// Bytes of SSH's largest packets of data.
const SSH_PACKET: usize = 32 << 10;
/// Packets between two looks at the clock.
const PACKETS: u64 = 8;

type Measure = fn(&Budget) -> Result<Ends, LoopbackError>;

/// The ciphers that OpenSSH and our endpoint agree on.
pub(super) const ALL: &[(StageName, &str, Measure)] = &[
    (StageName::SshAes128Gcm, "SSH's AES-128-GCM", |budget| measure(budget, &AES_128_GCM)),
    (StageName::SshChacha20Poly1305, "SSH's ChaCha20-Poly1305", |budget| measure(budget, &CHACHA20_POLY1305)),
];

fn measure(budget: &Budget, algorithm: &'static Algorithm) -> Result<Ends, LoopbackError> {
    let failed = |_| LoopbackError::Stage("SSH's ciphers", "the library refuses".to_owned());
    let secret = vec![0x17; algorithm.key_len()];
    let key = LessSafeKey::new(UnboundKey::new(algorithm, &secret).map_err(failed)?);
    let (mut ends, mut rounds, mut packet) = (Ends::default(), budget.rounds(), vec![0x5a; SSH_PACKET]);
    let mut meter = Meter::start();
    let mut tags = Vec::with_capacity(usize::try_from(PACKETS).unwrap_or_default());
    while rounds() {
        // The nonce repeats, with a key that keeps nothing secret.
        let nonce = |_| Nonce::assume_unique_for_key([0; 12]);
        for number in 0..PACKETS {
            tags.push(key.seal_in_place_separate_tag(nonce(number), Aad::empty(), &mut packet).map_err(failed)?);
        }
        meter.lap(&mut ends.sending);
        // Opened in the other order, each comes back to what it was.
        while let Some(tag) = tags.pop() {
            key.open_in_place_separate_tag(nonce(0), Aad::empty(), tag, &mut packet, 0..).map_err(failed)?;
        }
        meter.lap(&mut ends.receiving);
        ends.bytes += PACKETS * SSH_PACKET as u64;
    }
    Ok(ends)
}
