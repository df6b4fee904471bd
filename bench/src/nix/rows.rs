//! What is measured, and what is asked of it.

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Row {
    /// As the JSON has it.
    pub(crate) key: &'static str,
    /// The link, for people.
    pub(crate) link: &'static str,
    /// What is done, for people.
    pub(crate) what: &'static str,
    pub(crate) kind: RowKind,
    /// How many times as fast as plain sshd (or tailscaled) each of our lanes is to be.
    pub(crate) ssh: Target,
    pub(crate) direct: Target,
}

/// What is done in one measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowKind {
    /// One derivation that does nothing.
    NoOp,
    /// Twelve of them at once.
    Leaves,
    /// `nix copy` of a large path.
    LargeTo,
    LargeFrom,
    /// `nix copy` of many small ones.
    SmallTo,
    SmallFrom,
}

/// How many times as fast a lane is to be, compared with another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// Compared with plain sshd.
    Plain(f64),
    /// Compared with sshd through tailscaled.
    Tailscaled(f64),
    /// None here.
    None,
}

impl RowKind {
    /// Rounds of this row, where most have `rounds`.
    pub(crate) fn rounds(self, rounds: u8) -> u8 {
        match self {
            // They take most of the time, and vary least.
            Self::LargeTo | Self::LargeFrom => (rounds * 3).div_ceil(5),
            _ => rounds,
        }
    }

    /// Whether the first measurement differs from all later ones: the builder lacks the tools.
    pub(crate) fn warms_up(self) -> bool {
        matches!(self, Self::NoOp | Self::Leaves)
    }
}

impl Row {
    /// Whether nothing but this machine bounds the link.
    pub(crate) fn is_clean(&self) -> bool {
        self.key.starts_with("clean/")
    }
}

/// The kernel's own link, as fast as this machine is.
pub(crate) const CLEAN: [Row; 6] = [
    row("clean/no-op", "clean link", "no-op remote build", RowKind::NoOp, Target::Plain(1.0), Target::Plain(2.0)),
    row("clean/leaves", "clean link", "12 parallel leaves", RowKind::Leaves, Target::Plain(1.0), Target::Plain(3.0)),
    row(
        "clean/small-to",
        "clean link",
        "5,000 small paths, to",
        RowKind::SmallTo,
        Target::Plain(0.9),
        Target::Plain(1.0),
    ),
    row(
        "clean/small-from",
        "clean link",
        "5,000 small paths, from",
        RowKind::SmallFrom,
        Target::Plain(0.9),
        Target::Plain(1.0),
    ),
    row(
        "clean/large-to",
        "clean link",
        "nix copy 1 GiB, to",
        RowKind::LargeTo,
        Target::Tailscaled(1.0),
        Target::Plain(1.3),
    ),
    row(
        "clean/large-from",
        "clean link",
        "nix copy 1 GiB, from",
        RowKind::LargeFrom,
        Target::Tailscaled(1.0),
        Target::Plain(1.3),
    ),
];

/// A LAN.
pub(crate) const GIGABIT: [Row; 2] = [
    row(
        "gigabit/large-to",
        "1 Gbit/s",
        "nix copy 1 GiB, to",
        RowKind::LargeTo,
        Target::Plain(0.9),
        Target::Plain(0.95),
    ),
    row(
        "gigabit/large-from",
        "1 Gbit/s",
        "nix copy 1 GiB, from",
        RowKind::LargeFrom,
        Target::Plain(0.9),
        Target::Plain(0.95),
    ),
];

/// What the direct lane may take of the coordinator's processors for a large copy over a clean link, of what the SSH lane takes: it encrypts once.
pub(crate) const DIRECT_PROCESSOR: f64 = 0.7;

/// The emulated link without delay, for the slope.
pub(crate) const NEAR: [Row; 1] =
    [row("rtt/near", "RTT 0 ms", "no-op remote build", RowKind::NoOp, Target::None, Target::None)];

/// The emulated link, 40 ms each way.
pub(crate) const FAR: [Row; 1] =
    [row("rtt/far", "RTT 80 ms", "no-op remote build", RowKind::NoOp, Target::None, Target::None)];

/// Round trips of a no-op build that the direct lane may have.
pub(crate) const DIRECT_ROUND_TRIPS: f64 = 10.0;

const fn row(
    key: &'static str,
    link: &'static str,
    what: &'static str,
    kind: RowKind,
    ssh: Target,
    direct: Target,
) -> Row {
    Row { key, link, what, kind, ssh, direct }
}
