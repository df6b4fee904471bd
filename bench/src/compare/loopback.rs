//! What can be measured without root: everything that needs no device and no namespace, over this machine's loopback.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use super::plan::WITHOUT_ROOT;
use super::programs::Programs;
use super::rounds::{self, say};
use super::site::{Setting, Site};
use super::{Args, Found, finish};
use crate::stage::place::Place;
use crate::start::control::Control;

/// Measures, and says what was left out for want of what is `lacking`.
pub(super) fn run(args: &Args, lacking: &[String]) -> Result<(), Box<dyn Error>> {
    let mut found = Found::default();
    let why = if lacking.is_empty() { "--loopback".to_owned() } else { format!("it needs {}", lacking.join(", ")) };
    let left_out = "every link but loopback, and with them tailscaled with TUN, wireguard-go, OpenSSH, pairs of ours and \
                    others, the relay alone, and most targets";
    found.left_out.push(format!("{left_out}: {why}"));
    say(&format!("left out: {left_out}: {why}"));
    let programs = Programs::find(args)?;
    let mut selection = args.selection();
    selection.without = programs.lacking_peers(&mut found.left_out);
    let folder = Folder::new()?;
    let linked = folder.0.join("bin");
    programs.link_into(&linked)?;
    {
        let place = Place::Here(&folder.0);
        let control = Control::devnet(&linked, place, "127.0.0.1", 0)?;
        let setting = Setting {
            programs: &linked,
            places: [place; 2],
            control: &control,
            relayed: false,
            environment: &args.env,
        };
        let site = Site::new(setting);
        rounds::run(&WITHOUT_ROOT, &selection, &site, &(), &mut found.figures, &mut found.failed);
    }
    let settings = args.env.iter().map(|(name, value)| format!("nixtail with {name}={value}")).collect();
    finish(args, &[WITHOUT_ROOT], &found, settings, &programs.nixtail)
}

/// A folder for sockets and logs. Dropped, it is removed.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Box<dyn Error>> {
        let folder = std::env::temp_dir().join(format!("nixtail-compare-{:016x}", rand::random::<u64>()));
        fs::create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left of it, the system removes some day.
        let _ = fs::remove_dir_all(&self.0);
    }
}
