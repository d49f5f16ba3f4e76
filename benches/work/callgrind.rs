//! Runs something under callgrind and reads what it counted.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A command that runs under callgrind, which writes its counts to `out`.
pub(crate) fn command(out: &Path) -> Command {
    let mut command = Command::new("valgrind");
    // Long copies are one instruction that repeats itself otherwise, and callgrind counts each byte of them.
    command.env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS");
    command.args(["--quiet", "--tool=callgrind"]).arg(format!("--callgrind-out-file={}", out.display()));
    command
}

/// The file for the counts of `name`.
pub(crate) fn out_file(folder: &Path, name: &str) -> PathBuf {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    folder.join(format!("callgrind.{name}"))
}

/// Instructions for one of what a piece of work does.
pub(crate) fn count_piece(name: &str, folder: &Path) -> Result<f64, String> {
    let out = out_file(folder, name);
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = command(&out);
    // By its whole path: any other name may be somebody else's.
    command.args(["--collect-atstart=no", "--toggle-collect=instructions::measured*"]);
    let output = command.arg(this).args(["--piece", name]).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("valgrind can't be run ({error}); install it"))?;
    if !output.status.success() {
        return Err(format!("{name} ended with {}", output.status));
    }
    let times: u64 =
        String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|_| format!("{name} said nothing"))?;
    let total = total(&out)?;
    if total == 0 || times == 0 {
        return Err(format!("{name}: nothing was counted"));
    }
    Ok(total as f64 / times as f64)
}

/// All instructions that callgrind has counted.
pub(crate) fn total(out: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(out).map_err(|error| format!("{}: {error}", out.display()))?;
    let totals = text.lines().filter_map(|line| line.strip_prefix("totals: "));
    let numbers: Option<u64> = totals.map(|total| total.trim().parse::<u64>().ok()).sum();
    numbers.ok_or(format!("{}: not what callgrind writes", out.display()))
}
