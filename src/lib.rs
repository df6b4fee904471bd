//! A process on a Tailscale network without `tailscaled`, root or a TUN device.
pub mod net;
