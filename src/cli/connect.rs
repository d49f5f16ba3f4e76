//! How client commands reach a broker, and how what the client library says becomes an exit status.

use std::fs;
use std::future::Future;
use std::path::Path;

use tidelog_client::{Address, Client, ClientConfig, Error, ErrorKind};

use super::args::ClientArguments;
use super::exit::{CliError, Exit, with_causes};

/// Runs a client command on a runtime of its own; an interrupt ends it with 130.
///
/// # Errors
///
/// The command's.
pub(crate) fn run<T>(command: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    block_on(async {
        tokio::select! {
            outcome = command => outcome,
            interrupted = interrupted() => Err(interrupted),
        }
    })
}

/// Runs a client command that deals with interrupts itself, on a runtime of its own.
///
/// # Errors
///
/// The command's.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(Exit::No, "no_runtime", format!("could not start: {error}")))?;
    runtime.block_on(command)
}

/// Waits for an interrupt; what the command ends with then.
pub(crate) async fn interrupted() -> CliError {
    match tokio::signal::ctrl_c().await {
        Ok(()) => CliError::new(Exit::Interrupted, "interrupted", "interrupted"),
        Err(_) => std::future::pending().await,
    }
}

/// Connects as the options say.
///
/// # Errors
///
/// A bad address, no trust, or the broker's silence.
pub(crate) async fn connect(arguments: &ClientArguments) -> Result<Client, CliError> {
    let address: Address =
        arguments.server.parse().map_err(|error| CliError::new(Exit::Usage, "bad_address", with_causes(&error)))?;
    let mut config = ClientConfig::find(&address, arguments.ca.as_deref())
        .map_err(|error| failed(&error))?
        .with_timeout(arguments.timeout)
        .with_name(concat!("tidelog-cli/", env!("CARGO_PKG_VERSION")));
    if let Some(file) = &arguments.token_file {
        config = config.with_token(token(file)?);
    }
    Client::connect(config).await.map_err(|error| failed(&error))
}

fn token(file: &Path) -> Result<String, CliError> {
    let text = fs::read_to_string(file).map_err(|error| {
        let message = format!("could not read the token file {}: {error}", file.display());
        CliError::new(Exit::Trust, "no_token", message).with_hint("name a file that holds the token alone")
    })?;
    Ok(text.trim_end().to_owned())
}

/// What the client library says, as the end of a command.
pub(crate) fn failed(error: &Error) -> CliError {
    let exit = match error.kind() {
        ErrorKind::Usage => Exit::Usage,
        ErrorKind::Unreachable => Exit::Unreachable,
        ErrorKind::NotFound => Exit::NotFound,
        ErrorKind::Conflict => Exit::Conflict,
        ErrorKind::Access => Exit::Trust,
        ErrorKind::Busy => Exit::Busy,
        _ => Exit::No,
    };
    match error {
        // The broker's own words: what failed, and apart from that what to do.
        Error::Refused { name, message, hint, .. } => {
            CliError::named(exit, name.clone(), message.clone()).with_hint(hint.clone())
        }
        Error::Unsettled { cause } => {
            let doubt =
                "what was sent and not acknowledged may be stored; with --producer, running it again settles that";
            failed(cause).with_addition(doubt)
        }
        _ => CliError::named(exit, error.name().to_owned(), with_causes(error)),
    }
}
