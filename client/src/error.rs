//! Everything that can go wrong for a program that talks to a broker, as one enum that answers three questions: is it
//! worth trying again, may it be tried again, and what kind of trouble is it.

use std::time::Duration;

use tidelog_protocol::{
    BatchError, CloseCode, ErrorCode, FrameError, Offset, RecordError, Sequence, StreamName, TransportError, WireError,
};

use crate::address::AddressError;
use crate::tls::TlsError;
use crate::trust::TrustError;

/// Why a call failed. Cheap to clone: an error that ends a producer is told to everybody who waits for it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not the address of a broker.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// No reason to trust the broker was found.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The broker showed another key, or a certificate that no authority vouches for. Nothing was sent to it.
    #[error("{reason}. If the broker's key was changed on purpose, give its new pin; otherwise do not connect")]
    Untrusted {
        /// What did not fit.
        reason: String,
    },
    /// Something answers there, but it is no tidelog broker of this version.
    #[error("what answers there is no tidelog broker that this client understands: {reason}")]
    ForeignProtocol {
        /// What it said instead.
        reason: String,
    },
    /// No connection could be made.
    #[error("can't reach the broker at {reason}")]
    Unreachable {
        /// Place and cause.
        reason: String,
    },
    /// The connection went away. Whether what was under way has happened is not known.
    #[error("the connection to the broker was lost: {reason}")]
    Lost {
        /// What is known of the cause.
        reason: String,
    },
    /// So long nothing moved, tries to reconnect included.
    #[error("no progress for {} s while {doing}{}", waited.as_secs_f32(), describe_cause(cause.as_deref()))]
    TimedOut {
        /// The patience that was configured.
        waited: Duration,
        /// What was waited for.
        doing: &'static str,
        /// The last failure on the way, if there was one.
        cause: Option<Box<Error>>,
    },
    /// The broker's own answer. Nothing was stored by what it answers.
    #[error("{message}{}", describe_hint(hint))]
    Refused {
        /// The stable number; `None` for one that is newer than this client.
        code: Option<ErrorCode>,
        /// The number's name as the broker wrote it.
        name: String,
        /// What failed and why.
        message: String,
        /// What to do about it.
        hint: String,
        /// Whether the broker expects another try to help.
        retryable: bool,
        /// A number that belongs to the code, for example the sequence that was expected.
        detail: Option<u64>,
    },
    /// The broker has lost what it had acknowledged. The producer stops: a new number for an old record would make two.
    #[error(
        "the broker told that '{stream}' holds this producer's records up to sequence {told}, now it has them only up to \
         {found}: acknowledged records are lost. Nothing more was sent; see what `tidelog verify` says of the broker's \
         data before you go on"
    )]
    AcknowledgedLost {
        /// The stream.
        stream: StreamName,
        /// The highest sequence acknowledged.
        told: Sequence,
        /// The highest sequence the broker has now.
        found: Sequence,
    },
    /// Somebody else wrote under this producer's session: a copy of this process or machine.
    #[error(
        "'{stream}' holds this producer's records up to sequence {found}, but this session has only sent up to {sent}: \
         another process uses the same session. Use one process for a producer name"
    )]
    WrittenByAnother {
        /// The stream.
        stream: StreamName,
        /// The highest sequence this session has sent.
        sent: Sequence,
        /// The highest sequence the broker has.
        found: Sequence,
    },
    /// After a reconnect another log answered at the same address; positions and sequences mean nothing in it.
    #[error("the broker has another log than before ({found} instead of {first}); start anew to use it")]
    AnotherLog {
        /// The log of the first connection.
        first: String,
        /// The log that answered now.
        found: String,
    },
    /// The record is larger than the broker's limits. Nothing was sent.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A delivered batch does not match its checksum: it was damaged on the broker's side.
    #[error("what the broker delivers as '{stream}' from offset {offset} on is damaged: its checksum does not fit")]
    ChecksumMismatch {
        /// The stream.
        stream: StreamName,
        /// The first offset of the batch.
        offset: Offset,
    },
    /// The broker sent what the protocol does not allow; a bug on one of the two sides.
    #[error("the broker broke the protocol: {reason}")]
    Protocol {
        /// What it sent.
        reason: String,
    },
    /// The producer or its stream has ended, and records that it had sent were without an answer: they may be stored.
    #[error("{cause}; what was sent and not acknowledged may or may not be stored")]
    Unsettled {
        /// Why it ended; [`kind`](Error::kind), [`code`](Error::code) and [`name`](Error::name) are those of this.
        cause: Box<Error>,
    },
    /// The client, producer or publisher that was used is closed.
    #[error("already closed")]
    Closed,
    /// The system gave no random numbers; without them sessions can't be told apart.
    #[error("the system gives no random numbers: {reason}")]
    Randomness {
        /// What it said.
        reason: String,
    },
}

/// What kind of trouble an [`Error`] is; one for each exit code of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something broke or is damaged.
    Failed,
    /// What was asked for is not well formed, or a record is too large.
    Usage,
    /// No broker answers, or not in time.
    Unreachable,
    /// No such stream, position or the like.
    NotFound,
    /// Somebody or something else was there first: fenced, gaps, name exists.
    Conflict,
    /// Not trusted or not allowed.
    Access,
    /// The broker has no room at present.
    Busy,
}

impl ErrorKind {
    /// The exit code of a command that ends with this.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::NotFound => 4,
            Self::Conflict => 5,
            Self::Access => 6,
            Self::Busy => 7,
        }
    }
}

impl Error {
    /// Whether the same call may well succeed later, with nothing changed on this side.
    ///
    /// Producers and readers have already tried for as long as the client's timeout allows when they say so, and a
    /// producer that has ended stays ended: open another one.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } | Self::TimedOut { .. } => true,
            Self::Refused { retryable, .. } => *retryable,
            Self::Unsettled { cause } => cause.is_retryable(),
            Self::Address(_)
            | Self::Trust(_)
            | Self::Tls(_)
            | Self::Untrusted { .. }
            | Self::ForeignProtocol { .. }
            | Self::AcknowledgedLost { .. }
            | Self::WrittenByAnother { .. }
            | Self::AnotherLog { .. }
            | Self::Record(_)
            | Self::ChecksumMismatch { .. }
            | Self::Protocol { .. }
            | Self::Closed
            | Self::Randomness { .. } => false,
        }
    }

    /// Whether it is certain that nothing was done by the call that this error ended, so that doing it again can't do it
    /// twice. An error that ended a producer says so only if none of its records is without an answer.
    ///
    /// A record that was taken by a named producer is safe in any case as long as it keeps its sequence.
    pub const fn is_safe_to_resend(&self) -> bool {
        match self {
            Self::Address(_)
            | Self::Trust(_)
            | Self::Tls(_)
            | Self::Untrusted { .. }
            | Self::ForeignProtocol { .. }
            | Self::Unreachable { .. }
            | Self::Record(_)
            | Self::Closed
            | Self::Randomness { .. } => true,
            Self::Refused { code, .. } => match code {
                // Done or not, the broker does not know either; and what a newer one means by its code, nobody here.
                None | Some(ErrorCode::Poisoned | ErrorCode::TimedOut | ErrorCode::Internal) => false,
                Some(_) => true,
            },
            Self::Lost { .. }
            | Self::TimedOut { .. }
            | Self::Unsettled { .. }
            | Self::AcknowledgedLost { .. }
            | Self::WrittenByAnother { .. }
            | Self::AnotherLog { .. }
            | Self::ChecksumMismatch { .. }
            | Self::Protocol { .. } => false,
        }
    }

    /// The stable number that this error has on the wire, where it has one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { code, .. } => *code,
            Self::TimedOut { cause, .. } => cause.as_deref().and_then(Self::code),
            Self::Unsettled { cause } => cause.code(),
            Self::Record(error) => Some(error.code()),
            _ => None,
        }
    }

    /// A stable name in snake_case, for programs: that of [`code`](Self::code) where there is one.
    pub fn name(&self) -> &str {
        match self {
            Self::Refused { name, .. } => name,
            Self::Unsettled { cause } => cause.name(),
            Self::Record(error) => error.code().name(),
            Self::Address(_) => "bad_address",
            Self::Trust(_) => "no_trust",
            Self::Tls(_) => "bad_authorities",
            Self::Untrusted { .. } => "untrusted",
            Self::ForeignProtocol { .. } => "foreign_protocol",
            Self::Unreachable { .. } => "unreachable",
            Self::Lost { .. } => "connection_lost",
            Self::TimedOut { .. } => "timed_out",
            Self::AcknowledgedLost { .. } => "acknowledged_lost",
            Self::WrittenByAnother { .. } => "written_by_another",
            Self::AnotherLog { .. } => "another_log",
            Self::ChecksumMismatch { .. } => "damaged",
            Self::Protocol { .. } => "protocol",
            Self::Closed => "closed",
            Self::Randomness { .. } => "no_randomness",
        }
    }

    /// The kind of trouble, for exit codes and for deciding whom to call.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Address(_) | Self::Record(_) => ErrorKind::Usage,
            Self::Trust(_) | Self::Tls(_) | Self::Untrusted { .. } => ErrorKind::Access,
            Self::ForeignProtocol { .. } | Self::Unreachable { .. } | Self::Lost { .. } => ErrorKind::Unreachable,
            // A broker that answered "no room" to the end was reached.
            Self::TimedOut { cause, .. } => match cause.as_deref().map(Self::kind) {
                Some(ErrorKind::Busy) => ErrorKind::Busy,
                _ => ErrorKind::Unreachable,
            },
            Self::Refused { code, .. } => code.map_or(ErrorKind::Failed, kind_of_code),
            Self::Unsettled { cause } => cause.kind(),
            Self::WrittenByAnother { .. } | Self::AnotherLog { .. } => ErrorKind::Conflict,
            Self::AcknowledgedLost { .. }
            | Self::ChecksumMismatch { .. }
            | Self::Protocol { .. }
            | Self::Closed
            | Self::Randomness { .. } => ErrorKind::Failed,
        }
    }

    pub(crate) fn protocol(reason: impl Into<String>) -> Self {
        Self::Protocol { reason: reason.into() }
    }

    /// The same end, with records left of which nobody knows whether they are stored.
    pub(crate) fn unsettled(self) -> Self {
        // Those that promise nothing anyway stay as they are.
        if self.is_safe_to_resend() {
            return Self::Unsettled { cause: Box::new(self) };
        }
        self
    }

    /// A refusal that comes as a bare number, as those of publishes do.
    pub(crate) fn refused(code: ErrorCode, message: String, detail: Option<u64>) -> Self {
        Self::Refused {
            code: Some(code),
            name: code.name().into(),
            message,
            hint: code.hint().into(),
            retryable: code.is_retryable(),
            detail,
        }
    }
}

fn kind_of_code(code: ErrorCode) -> ErrorKind {
    match code {
        ErrorCode::BadName | ErrorCode::RecordTooLarge | ErrorCode::BatchTooLarge => ErrorKind::Usage,
        ErrorCode::UnsupportedVersion | ErrorCode::Stopping | ErrorCode::TimedOut => ErrorKind::Unreachable,
        ErrorCode::NotFound | ErrorCode::StreamGone | ErrorCode::PositionPastEnd => ErrorKind::NotFound,
        ErrorCode::Exists
        | ErrorCode::Fenced
        | ErrorCode::SequenceGap
        | ErrorCode::SequenceReused
        | ErrorCode::SequencePast
        | ErrorCode::SequenceOverlap
        | ErrorCode::SequenceMode
        | ErrorCode::Superseded
        | ErrorCode::StaleGeneration
        | ErrorCode::TransactionConflict => ErrorKind::Conflict,
        ErrorCode::Unauthorized => ErrorKind::Access,
        ErrorCode::LimitReached | ErrorCode::Busy | ErrorCode::DiskFull | ErrorCode::Poisoned => ErrorKind::Busy,
        _ => ErrorKind::Failed,
    }
}

fn describe_cause(cause: Option<&Error>) -> String {
    cause.map_or_else(String::new, |cause| format!("; last: {cause}"))
}

fn describe_hint(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("; {hint}") }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        Self::Refused {
            code: ErrorCode::from_number(error.code),
            name: error.name,
            message: error.message,
            hint: error.hint,
            retryable: error.retryable,
            detail: error.detail,
        }
    }
}

impl From<TransportError> for Error {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Unreachable(reason) => Self::Unreachable { reason },
            TransportError::Untrusted(reason) => Self::Untrusted { reason },
            TransportError::ForeignProtocol(reason) => Self::ForeignProtocol { reason },
            TransportError::Lost(reason) => Self::Lost { reason },
            TransportError::Reset { code } | TransportError::Stopped { code } => {
                Self::Lost { reason: format!("the broker ended the QUIC stream with code {code}") }
            }
            TransportError::Closed { code, reason } => closed_by_broker(code, reason),
        }
    }
}

/// A broker that closes a connection says so with a code; only some of them make a new connection pointless.
fn closed_by_broker(code: u32, reason: String) -> Error {
    let message = if reason.is_empty() { "the broker closed the connection".into() } else { reason };
    if code == CloseCode::Unauthorized as u32 {
        Error::refused(ErrorCode::Unauthorized, message, None)
    } else if code == CloseCode::Superseded as u32 {
        Error::refused(ErrorCode::Superseded, message, None)
    } else if code == CloseCode::ProtocolError as u32 {
        Error::protocol(format!("it closed the connection and says that this client did: {message}"))
    } else if code == CloseCode::Busy as u32 {
        Error::refused(ErrorCode::Busy, message, None)
    } else {
        Error::Lost { reason: message }
    }
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Self {
        Self::protocol(error.to_string())
    }
}

impl From<BatchError> for Error {
    fn from(error: BatchError) -> Self {
        Self::protocol(error.to_string())
    }
}

#[cfg(test)]
mod tests;
