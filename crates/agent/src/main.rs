//! The program `lifeboat-agent`; everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    lifeboat_agent::cli::main()
}
