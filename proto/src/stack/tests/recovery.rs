//! What is lost, refused or held up where a window is closed.

use super::*;

/// Whoever asks whether a window is open still has to be heard: it acknowledges what comes the other way.
#[test]
fn a_closed_window_holds_up_nothing_that_goes_the_other_way() {
    let mut pair = Pair::new(Link::with_round_trip(20));
    let (client, server) = pair.connected(22);
    let mut blocked = 0;
    loop {
        let written = pair.stacks[0].write(pair.now, client, &[1; 65_536]).unwrap();
        if written == 0 {
            break;
        }
        blocked += written;
        pair.pass(SECOND / 10);
    }
    // Long enough for many such questions.
    pair.pass(20 * SECOND);
    let answer = vec![2; 12 << 20];
    let (mut written, mut read) = (0, 0);
    pair.until(5 * SECOND, |pair| {
        written += pair.stacks[1].write(pair.now, server.id, &answer[written..]).unwrap();
        read += pair.read_all(0, client).0.len();
        read == answer.len()
    });
    let mut taken = 0;
    pair.until(20 * SECOND, |pair| {
        let (bytes, _) = pair.read_all(1, server.id);
        assert!(bytes.iter().all(|byte| *byte == 1));
        taken += bytes.len();
        taken == blocked
    });
}

/// A reader that stops and goes on, over a path that loses: windows close with something lost before them.
#[test]
fn a_reader_that_pauses_gets_all_of_it_whatever_is_lost() {
    for loss in [0, 1000, 5000] {
        let mut pair = Pair::new(Link { loss, ..Link::with_round_trip(10) });
        let (client, server) = pair.connected(22);
        let sent: Vec<u8> = (0..12 << 20).map(|n: u32| (n / 1000 + n) as u8).collect();
        let (mut written, mut got) = (0, Vec::new());
        let mut next_read = pair.now;
        pair.until(300 * SECOND, |pair| {
            let now = pair.now;
            written += pair.stacks[0].write(now, client, &sent[written..]).unwrap();
            if now >= next_read {
                got.extend(pair.read_all(1, server.id).0);
                next_read = now + SECOND * 3;
            }
            got.len() == sent.len()
        });
        assert!(got == sent, "other bytes arrived with {loss} of 100,000 lost");
    }
}
