//! The model at work: a TUN device in each of two network namespaces, and threads that carry packets between them.
//!
//! Attaching to a TUN device is an ioctl. `tappers` wraps it, so that nothing here is `unsafe`; the device is made in our
//! own namespace and then moved: it stays attached.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tappers::{Interface, Tun};

use super::{Conditions, Counts, Line};
use crate::stage::process::run;

/// The name of the device in either namespace.
pub(crate) const DEVICE: &str = "link0";

/// Packets that the kernel holds for us while we are busy; beyond that it drops what the model never saw.
const DEVICE_QUEUE: &str = "8000";

/// What a TUN device gives at once: one packet, no longer than the MTU. (Nobody told it to take super-segments.)
const LONGEST_PACKET: usize = 65_536;

/// How long a carrier waits at the most before it looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(100);

/// A link between two network namespaces. Dropping it removes the devices.
#[derive(Debug)]
pub(crate) struct Wire {
    ends: [u32; 2],
    directions: [Arc<Direction>; 2],
    threads: Vec<JoinHandle<()>>,
}

/// One direction, shared by who takes packets up and who puts them down.
#[derive(Debug)]
struct Direction {
    line: Mutex<Line>,
    earlier: Condvar,
    over: AtomicBool,
    transparent: bool,
}

impl Wire {
    /// Joins the network namespaces of two processes by devices named [`DEVICE`] with these addresses (in CIDR form).
    pub(crate) fn join(ends: [(u32, &str); 2], conditions: Conditions) -> Result<Self, Box<dyn Error>> {
        let make = |name: &str| -> Result<Arc<Tun>, Box<dyn Error>> {
            let named = Tun::new_named(Interface::new(name)?);
            Ok(Arc::new(named.map_err(|error| format!("no TUN device can be made ({error}); is /dev/net/tun there?"))?))
        };
        let names = ["nixtail-left", "nixtail-right"];
        let tuns = [make(names[0])?, make(names[1])?];
        for (name, (process, address)) in names.into_iter().zip(ends) {
            let process = process.to_string();
            run("ip", &["link", "set", name, "netns", &process, "name", DEVICE])?;
            let within = ["-t", &process, "-n", "ip"];
            run("nsenter", &[&within, ["addr", "add", address, "dev", DEVICE].as_slice()].concat())?;
            let up = ["link", "set", DEVICE, "mtu", "1500", "txqueuelen", DEVICE_QUEUE, "up"];
            run("nsenter", &[&within, up.as_slice()].concat())?;
        }
        let direction = |seed| {
            Arc::new(Direction {
                line: Mutex::new(Line::new(conditions, seed)),
                earlier: Condvar::new(),
                over: AtomicBool::new(false),
                transparent: conditions.is_transparent(),
            })
        };
        let directions = [direction(1), direction(2)];
        let mut threads = Vec::new();
        for (index, direction) in directions.iter().enumerate() {
            let (from, to) = (tuns[index].clone(), tuns[1 - index].clone());
            if !direction.transparent {
                let (direction, to) = (direction.clone(), to.clone());
                threads.push(std::thread::spawn(move || direction.put_down(&to)));
            }
            let direction = direction.clone();
            threads.push(std::thread::spawn(move || direction.take_up(&from, &to)));
        }
        Ok(Self { ends: ends.map(|(process, _)| process), directions, threads })
    }

    /// What became of packets, in each direction.
    pub(crate) fn counts(&self) -> [Counts; 2] {
        [&self.directions[0], &self.directions[1]].map(|direction| direction.lock().counts())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for direction in &self.directions {
            direction.over.store(true, Ordering::Relaxed);
        }
        for process in self.ends {
            // It wakes whoever reads from the device; when the namespace is gone, so is the device.
            let _ = run("nsenter", &["-t", &process.to_string(), "-n", "ip", "link", "del", DEVICE]);
        }
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Direction {
    /// From the kernel to the model, until the device is gone.
    fn take_up(&self, from: &Tun, to: &Tun) {
        let mut buffer = vec![0; LONGEST_PACKET];
        while !self.over.load(Ordering::Relaxed) {
            let Ok(length) = from.recv(&mut buffer) else {
                // Gone, or not up yet.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let packet = buffer.get(..length).unwrap_or_default();
            if self.transparent {
                // What the other side can't take is lost, as on any link.
                let _ = to.send(packet);
            } else if self.lock().handle_packet(Instant::now(), packet.to_vec()) {
                self.earlier.notify_one();
            }
        }
    }

    /// From the model to the kernel, each packet at its time.
    fn put_down(&self, to: &Tun) {
        let mut due = Vec::new();
        while !self.over.load(Ordering::Relaxed) {
            let mut line = self.lock();
            while let Some(packet) = line.poll_packet(Instant::now()) {
                due.push(packet);
            }
            if due.is_empty() {
                let left = line.poll_timeout().map_or(GLANCE, |at| at.saturating_duration_since(Instant::now()));
                drop(self.earlier.wait_timeout(line, left.min(GLANCE)).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            drop(line);
            for packet in due.drain(..) {
                // What the other side can't take is lost, as on any link.
                let _ = to.send(&packet);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
