fn main() -> std::process::ExitCode {
    delo::cli::main()
}
