//! The command line.

fn main() -> std::process::ExitCode {
    nixtail::cli::main()
}
