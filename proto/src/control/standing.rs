//! How a node stands with control: whether an admin has approved it, and when its key ends.

use std::time::Duration;

use crate::netmap::Netmap;
use crate::tailcfg::Timestamp;

/// How a node stands with control, as its netmap says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may be used.
    Good,
    /// An admin has yet to approve the machine. No error: a later netmap says that it is done.
    Unapproved,
    /// Its key has ended: control and the peers use it no more.
    Ended,
}

/// How our node stands. `clock` is our own; control's clock, as far as it is known to differ, decides.
#[must_use]
pub fn standing(netmap: &Netmap, clock: Timestamp) -> Standing {
    let node = &netmap.self_node;
    if node.expired || time_left(netmap, clock).is_some_and(|left| left.is_zero()) {
        Standing::Ended
    } else if node.machine_authorized {
        Standing::Good
    } else {
        Standing::Unapproved
    }
}

/// How long our key is good for, zero when it has ended. `None`: it has no end.
#[must_use]
pub fn time_left(netmap: &Netmap, clock: Timestamp) -> Option<Duration> {
    let end = Some(netmap.self_node.key_expiry).filter(|end| !end.is_zero())?;
    let now = clock.unix().saturating_add(netmap.clock_offset);
    Some(Duration::from_secs(u64::try_from(end.unix().saturating_sub(now)).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tailcfg::Node;

    const CLOCK: Timestamp = Timestamp::from_unix(1_700_000_000);

    fn netmap(node: Node, clock_offset: i64) -> Netmap {
        Netmap { self_node: Arc::new(node), clock_offset, ..Netmap::default() }
    }

    #[test]
    fn a_key_ends_by_the_clock_of_control() {
        let node = |after: i64| Node {
            key_expiry: Timestamp::from_unix(CLOCK.unix() + after),
            machine_authorized: true,
            ..Node::default()
        };
        for (after, offset, left, stands) in [
            (10, 0, 10, Standing::Good),
            (0, 0, 0, Standing::Ended),
            (-10, 0, 0, Standing::Ended),
            // Our clock is an hour late, and one that is an hour early.
            (10, 3600, 0, Standing::Ended),
            (-10, -3600, 3590, Standing::Good),
        ] {
            let netmap = netmap(node(after), offset);
            assert_eq!(time_left(&netmap, CLOCK), Some(Duration::from_secs(left)), "{after} {offset}");
            assert_eq!(standing(&netmap, CLOCK), stands, "{after} {offset}");
        }
        let endless = netmap(Node { machine_authorized: true, ..Node::default() }, 0);
        assert_eq!((time_left(&endless, CLOCK), standing(&endless, CLOCK)), (None, Standing::Good));
    }

    #[test]
    fn an_unapproved_machine_waits_and_an_ended_one_does_not() {
        let waits = netmap(Node::default(), 0);
        assert_eq!(standing(&waits, CLOCK), Standing::Unapproved);
        // headscale calls a machine unauthorised whose key has ended: nobody can approve that away.
        let ended = netmap(Node { expired: true, ..Node::default() }, 0);
        assert_eq!(standing(&ended, CLOCK), Standing::Ended);
    }
}
