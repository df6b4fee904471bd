//! When this machine's addresses or routes change. Linux says so; elsewhere whoever wants to know looks at them every few
//! seconds, as the dataplane does in any case.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::LinkWatch;
#[cfg(target_os = "linux")]
pub(crate) use linux::LinkWatch;
