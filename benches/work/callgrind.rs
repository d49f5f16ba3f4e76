//! Runs something under callgrind and reads what it counted.

use std::collections::HashSet;
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
    total_without(out, None)
}

/// The same, but for those of functions whose name has this in it.
pub(crate) fn total_without(out: &Path, left_out: Option<&str>) -> Result<u64, String> {
    let text = std::fs::read_to_string(out).map_err(|error| format!("{}: {error}", out.display()))?;
    let (own, left_out) = own_instructions(&text, left_out);
    let totals = text.lines().filter_map(|line| line.strip_prefix("totals: "));
    let total: Option<u64> = totals.map(|total| total.trim().parse::<u64>().ok()).sum();
    match total {
        Some(total) if total == own => Ok(total - left_out),
        _ => Err(format!("{}: not what callgrind writes", out.display())),
    }
}

/// What the functions of a profile took themselves, in all, and those whose name has `left_out` in it.
fn own_instructions(profile: &str, left_out: Option<&str>) -> (u64, u64) {
    let is_left_out = |name: &str| left_out.is_some_and(|part| name.contains(part));
    // A name is written out where its number comes first, also as that of a function called.
    let mut numbers_left_out = HashSet::new();
    let (mut is_counted, mut is_of_a_call) = (true, false);
    let (mut all, mut out) = (0, 0);
    for line in profile.lines() {
        if let Some((key @ ("fn" | "cfn"), function)) = line.split_once('=') {
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            if is_left_out(name) {
                numbers_left_out.insert(number);
            }
            if key == "fn" {
                is_counted = !numbers_left_out.contains(number);
            }
        } else if line.starts_with("calls=") {
            is_of_a_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok()).unwrap_or(0);
            // Behind a call stands what the function called has taken, which is counted there.
            if !std::mem::take(&mut is_of_a_call) {
                all += cost;
                out += if is_counted { 0 } else { cost };
            }
        }
    }
    (all, out)
}
