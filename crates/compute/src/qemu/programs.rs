//! Whether a program is installed, asked before something begins that would need it.

use std::path::Path;

use crate::error::ComputeError;

/// Refuses, naming the package, when the program is not there.
pub(crate) fn find(program: &Path, package: &'static str) -> Result<(), ComputeError> {
    let is_there = if program.components().count() > 1 {
        program.is_file()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    };
    if is_there {
        return Ok(());
    }
    Err(ComputeError::ProgramMissing { program: program.display().to_string(), package })
}
