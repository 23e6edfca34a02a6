//! Parses the arguments, calls one verb, returns its exit code.

fn main() -> std::process::ExitCode {
    sluicegate::cli::main()
}
