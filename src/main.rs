//! The command line.

fn main() -> std::process::ExitCode {
    // Before all else: Nix waits while this starts.
    #[cfg(feature = "ssh-nix")]
    if let Some(code) = nixtail::direct::run_if_called() {
        return code;
    }
    nixtail::cli::main()
}
