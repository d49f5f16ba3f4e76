//! The command line: parses it, runs the one command it names, and ends with that command's status.

mod args;
mod bench;
mod connect;
mod consume;
mod damage_words;
mod ending;
mod exit;
mod lines;
mod output;
mod produce;
mod ready;
mod receipts;
mod records;
mod repair;
mod serve;
mod stream;
mod time;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Arguments, Command};
use exit::{CliError, Exit};

/// Runs what the process was called with.
pub(crate) fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error, std::env::args_os()),
    };
    let json = arguments.command.json();
    match dispatch(arguments.command) {
        Ok(()) => Exit::Done.into(),
        Err(error) => {
            error.print(json);
            error.exit().into()
        }
    }
}

fn dispatch(command: Command) -> Result<(), CliError> {
    match command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Stream(arguments) => stream::run(arguments.command),
        Command::Produce(arguments) => produce::run(arguments),
        Command::Consume(arguments) => consume::run(arguments),
        Command::Bench(arguments) => bench::run(&arguments.command),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Repair(arguments) => repair::run(&arguments),
    }
}

/// Tells what clap has to say: help and version on standard output, wrong usage on standard error,
/// as JSON if that was asked for, wherever in the line it went wrong.
fn refuse(error: &clap::Error, mut words: impl Iterator<Item = OsString>) -> ExitCode {
    if !error.use_stderr() {
        // A closed pipe under `tidelog --help | head` is no failure.
        let _ = error.print();
        return Exit::Done.into();
    }
    if words.any(|word| word == "--json") {
        usage_error(error).print(true);
    } else {
        let _ = error.print();
    }
    Exit::Usage.into()
}

fn usage_error(error: &clap::Error) -> CliError {
    let rendered = error.render().to_string();
    // clap's text is the sentence, then advice in paragraphs of its own.
    let (message, advice) = rendered.split_once("\n\n").unwrap_or((&rendered, ""));
    let message = message.trim().trim_start_matches("error: ");
    CliError::new(Exit::Usage, "usage", message).with_hint(advice.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_usage_is_told_with_status_2_and_what_to_type() {
        let error = Arguments::try_parse_from(["tidelog", "serve", "--listen", "x"]).unwrap_err();
        let error = usage_error(&error);
        assert_eq!(error.exit(), Exit::Usage);
        let error = format!("{error:?}");
        assert!(error.contains("invalid value 'x' for '--listen <ADDR>'"), "{error}");
        assert!(error.contains("--help"), "{error}");
    }
}
