//! Which of Nix' system features are real here. Nix' default names four of them for every machine.

use super::machine::Size;
use super::probe::Inside;
use super::settings::Settings;

/// `big-parallel` marks what takes hours on a small machine (browsers, kernels, LLVM) and links in gigabytes: four
/// processors, as hosted runners have.
const BIG_CORES: u32 = 4;
/// The memory for it: what is left of the 8 GiB that such machines are sold with.
const BIG_MEMORY: u64 = 7 << 30;
/// `benchmark` marks what measures time: a second processor must take what else goes on.
const BENCHMARK_CORES: u32 = 2;

/// The features to offer, of those that Nix would accept. What the operator wrote into `system-features` is believed, unless it
/// is shown to be untrue.
///
/// `inside` is what a build saw, if one ran.
pub fn real(settings: &Settings, inside: Option<&Inside>, size: &Size) -> Vec<String> {
    let given = settings.features_are_given;
    let switched_on = |name: &str| settings.experimental.as_ref().is_none_or(|all| all.iter().any(|one| one == name));
    let kvm = inside.map_or_else(kvm_opens_for_us, |inside| inside.kvm);
    let is_real = |feature: &str| match feature {
        // A test that boots machines takes a hundred times as long without it, and fails by its own time limits.
        "kvm" | "nixos-test" => kvm,
        "big-parallel" => given || (size.cores >= BIG_CORES && size.memory_bytes >= BIG_MEMORY),
        "benchmark" => given || size.cores >= BENCHMARK_CORES,
        "recursive-nix" | "ca-derivations" => switched_on(feature),
        "uid-range" => settings.allocates_uids && inside.is_none_or(|inside| inside.sandboxed) && has_cgroup_2(),
        "apple-virt" => cfg!(target_os = "macos"),
        _ => true,
    };
    settings.features.iter().filter(|feature| is_real(feature)).cloned().collect()
}

fn kvm_opens_for_us() -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// A range of user ids is given in a control group of version 2, which must be the only version.
fn has_cgroup_2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::settings::tests::defaults;

    fn offered(settings: &Settings, inside: &Inside, size: &Size) -> String {
        real(settings, Some(inside), size).join(" ")
    }

    const LARGE: Size = Size { cores: 4, memory_bytes: 16 << 30 };
    const SMALL: Size = Size { cores: 1, memory_bytes: 2 << 30 };

    #[test]
    fn kvm_is_real_when_it_opens_for_builds_and_nixos_tests_go_with_it() {
        let with = Inside { kvm: true, ..Inside::default() };
        assert_eq!(offered(&defaults(), &with, &LARGE), "benchmark big-parallel kvm nixos-test");
        assert_eq!(offered(&defaults(), &Inside::default(), &LARGE), "benchmark big-parallel");
        // Not even the operator's word makes a device.
        let given = Settings { features_are_given: true, ..defaults() };
        assert_eq!(offered(&given, &Inside::default(), &LARGE), "benchmark big-parallel");
    }

    #[test]
    fn big_parallel_and_benchmark_go_by_size_unless_they_are_given() {
        assert_eq!(offered(&defaults(), &Inside::default(), &SMALL), "");
        assert_eq!(offered(&defaults(), &Inside::default(), &Size { cores: 2, ..SMALL }), "benchmark");
        assert_eq!(offered(&defaults(), &Inside::default(), &Size { cores: 8, ..SMALL }), "benchmark");
        let given = Settings { features_are_given: true, ..defaults() };
        assert_eq!(offered(&given, &Inside::default(), &SMALL), "benchmark big-parallel");
    }

    #[test]
    fn experimental_features_are_real_when_they_are_switched_on() {
        let features = ["recursive-nix", "ca-derivations", "uid-range", "gccarch-skylake"].map(str::to_owned).to_vec();
        let settings = Settings { features, features_are_given: true, ..defaults() };
        let off = Settings { experimental: Some(vec!["ca-derivations".into()]), ..settings.clone() };
        assert_eq!(offered(&off, &Inside::default(), &LARGE), "ca-derivations gccarch-skylake");
        // Where Nix doesn't say, the operator has.
        assert_eq!(offered(&settings, &Inside::default(), &LARGE), "recursive-nix ca-derivations gccarch-skylake");
    }
}
