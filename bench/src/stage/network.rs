//! What joins the two machines: the link that is measured, and a way to control that doesn't lead to the other machine.

use std::error::Error;

use super::Machine;
use super::process::run;
use crate::link::{Conditions, Counts, DEVICE, Wire};

/// Where control, relay and STUN are.
pub(crate) const CONTROL: &str = "10.98.0.1";
/// The coordinator's address on the link.
pub(crate) const LEFT: &str = "10.99.0.1";
/// The builder's address on the link.
pub(crate) const RIGHT: &str = "10.99.0.2";

/// Joins each machine to our own network namespace, which holds [`CONTROL`]. It forwards nothing, so that the machines
/// meet on the measured link alone.
pub(crate) fn join_control(machines: [&Machine; 2]) -> Result<(), Box<dyn Error>> {
    join_control_at(None, machines)
}

/// As [`join_control`], with control in a machine of its own.
pub(crate) fn join_control_at(control: Option<&Machine>, machines: [&Machine; 2]) -> Result<(), Box<dyn Error>> {
    let there = |arguments: &[&str]| match control {
        Some(control) => control.ip(arguments),
        None => run("ip", arguments).map(drop),
    };
    there(&["addr", "add", &format!("{CONTROL}/32"), "dev", "lo"])?;
    for (index, machine) in machines.into_iter().enumerate() {
        let (name, id) = (format!("control{index}"), machine.id().to_string());
        let (ours, theirs) = (format!("10.98.{}.1", index + 1), format!("10.98.{}.2", index + 1));
        there(&["link", "add", &name, "type", "veth", "peer", "name", "control", "netns", &id])?;
        there(&["addr", "add", &format!("{ours}/30"), "dev", &name])?;
        there(&["link", "set", &name, "up"])?;
        machine.ip(&["addr", "add", &format!("{theirs}/30"), "dev", "control"])?;
        machine.ip(&["link", "set", "control", "up"])?;
        machine.ip(&["route", "add", CONTROL, "via", &ours])?;
    }
    Ok(())
}

/// The link between the machines. Dropping it removes it.
#[derive(Debug)]
pub(crate) enum Link<'a> {
    /// The kernel's own, as fast as it is.
    Veth(&'a Machine),
    /// Ours.
    Emulated(Wire),
}

impl<'a> Link<'a> {
    /// A pair of virtual Ethernet devices.
    pub(crate) fn veth(machines: [&'a Machine; 2]) -> Result<Self, Box<dyn Error>> {
        let [left, right] = machines;
        let peer = right.id().to_string();
        left.ip(&["link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", &peer])?;
        let link = Self::Veth(left);
        for (machine, address) in machines.into_iter().zip([LEFT, RIGHT]) {
            machine.ip(&["addr", "add", &format!("{address}/30"), "dev", DEVICE])?;
            machine.ip(&["link", "set", DEVICE, "up"])?;
        }
        Ok(link)
    }

    /// A link of ours.
    pub(crate) fn emulated(machines: [&'a Machine; 2], conditions: Conditions) -> Result<Self, Box<dyn Error>> {
        let [left, right] = machines.map(Machine::id);
        let (left_address, right_address) = (format!("{LEFT}/30"), format!("{RIGHT}/30"));
        Ok(Self::Emulated(Wire::join([(left, &left_address), (right, &right_address)], conditions)?))
    }

    /// What became of packets, where the link is ours.
    pub(crate) fn counts(&self) -> Option<[Counts; 2]> {
        match self {
            Self::Veth(_) => None,
            Self::Emulated(wire) => Some(wire.counts()),
        }
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        if let Self::Veth(left) = self {
            // With the namespace it is gone anyway.
            let _ = left.ip(&["link", "del", DEVICE]);
        }
    }
}
