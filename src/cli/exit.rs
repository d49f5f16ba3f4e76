//! How a command ends: the exit status, and an error as people and scripts read it.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

/// The exit statuses; scripts rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done as asked.
    Done = 0,
    /// The answer is no (damage found, a check failed), or input, output or a format failed.
    No = 1,
    /// Wrong usage, a bad name, a record too large.
    Usage = 2,
    /// The broker cannot be reached, speaks another protocol, or took too long.
    Unreachable = 3,
    /// What was named does not exist, or is none of the caller's business.
    NotFound = 4,
    /// Somebody else was there before: fenced, a gap, exists, address or folder in use.
    Conflict = 5,
    /// No trust in the broker, or no access for the caller.
    Trust = 6,
    /// The broker has no room now: busy or disk full.
    Busy = 7,
    /// Ended by a signal.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not do what it was asked for.
///
/// As JSON, `error` is the stable name and `code` the exit status, for readers that do not see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CliError {
    /// A stable name for scripts.
    name: Cow<'static, str>,
    exit: Exit,
    message: String,
    hint: String,
}

impl CliError {
    /// An error of this side. `name` is stable: scripts compare it.
    pub(crate) fn new(exit: Exit, name: &'static str, message: impl Into<String>) -> CliError {
        CliError { name: Cow::Borrowed(name), exit, message: message.into(), hint: String::new() }
    }

    /// What to do next, as a sentence.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> CliError {
        self.hint = hint.into();
        self
    }

    /// The same error, with a further sentence behind what is to be done.
    pub(crate) fn with_addition(mut self, addition: &str) -> CliError {
        if !self.hint.is_empty() {
            self.hint.push_str("; ");
        }
        self.hint.push_str(addition);
        self
    }

    /// An error whose stable name comes from elsewhere: the client library, or the broker.
    pub(crate) fn named(exit: Exit, name: String, message: impl Into<String>) -> CliError {
        CliError { name: Cow::Owned(name), exit, message: message.into(), hint: String::new() }
    }

    /// Standard output was closed by whoever read it: the end of the command, and nothing to tell.
    pub(crate) fn closed_pipe() -> CliError {
        CliError::new(Exit::Done, "closed_pipe", "")
    }

    /// The exit status to end with.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Tells the error on standard error, unless there is nothing to tell.
    pub(crate) fn print(&self, json: bool) {
        let text = match (self.exit, json) {
            (Exit::Done, _) => return,
            (_, true) => self.json(),
            (_, false) => self.text(),
        };
        // With standard error gone, the exit status is all that is left to say it with.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    fn text(&self) -> String {
        let mut text = format!("tidelog: {}\n", self.message);
        if !self.hint.is_empty() {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "hint: {}", self.hint);
        }
        text
    }

    fn json(&self) -> String {
        let mut text = serde_json::json!({
            "error": self.name,
            "code": self.exit as u8,
            "message": self.message,
            "hint": self.hint,
        })
        .to_string();
        text.push('\n');
        text
    }
}

/// An error and what caused it, in one line; a cause that the error's own text quotes is not repeated.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_as_json_has_the_promised_fields() {
        let error = CliError::new(Exit::Conflict, "address_in_use", "127.0.0.1:7440 is in use")
            .with_hint("stop the other broker");
        let value: serde_json::Value = serde_json::from_str(&error.json()).unwrap();
        let mut fields: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        fields.sort();
        assert_eq!(fields, ["code", "error", "hint", "message"]);
        assert_eq!(value["error"], "address_in_use");
        assert_eq!(value["message"], "127.0.0.1:7440 is in use");
        assert_eq!(value["hint"], "stop the other broker");
        assert_eq!(value["code"], 5);
    }

    #[test]
    fn text_has_a_hint_line_only_with_a_hint() {
        let error = CliError::new(Exit::No, "io", "it broke");
        assert_eq!(error.text(), "tidelog: it broke\n");
        let error = error.with_hint("mend it");
        assert_eq!(error.text(), "tidelog: it broke\nhint: mend it\n");
    }

    #[test]
    fn causes_are_told_in_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("could not open")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("no such device"));
        assert_eq!(with_causes(&error), "could not open: no such device");
        #[derive(Debug, thiserror::Error)]
        #[error("could not open ({0})")]
        struct Quoting(#[source] std::io::Error);
        let error = Quoting(std::io::Error::other("no such device"));
        assert_eq!(with_causes(&error), "could not open (no such device)");
    }
}
