//! Error numbers of the wire, never reused, and how an error is told to the other side.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, retryable: $retryable:literal, $hint:literal;)*) => {
        /// Why a request or a batch was refused. The numbers are those of the wire and are never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[$doc])* $variant = $number,)*
        }

        impl ErrorCode {
            /// Every code, in the order of their numbers.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$variant,)*];

            /// The code with this number, or `None` if this version knows none.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<ErrorCode> {
                match number {
                    $($number => Some(ErrorCode::$variant),)*
                    _ => None,
                }
            }

            /// The name in `snake_case`, as people and scripts see it; as stable as the number.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(ErrorCode::$variant => $name,)*
                }
            }

            /// Whether the very same request can succeed later, without anybody changing it.
            #[must_use]
            pub const fn is_retryable(self) -> bool {
                match self {
                    $(ErrorCode::$variant => $retryable,)*
                }
            }

            /// What to do next, one sentence for people.
            #[must_use]
            pub const fn hint(self) -> &'static str {
                match self {
                    $(ErrorCode::$variant => $hint,)*
                }
            }
        }
    };
}

error_codes! {
    /// The bytes break the protocol; nothing of them was used.
    Malformed = 1, "malformed", retryable: false,
        "the two sides disagree about the protocol: compare their versions";
    /// No protocol version that both sides speak.
    UnsupportedVersion = 2, "unsupported_version", retryable: false,
        "use a client and a broker of the same major version";
    /// The credential was refused.
    Unauthorized = 3, "unauthorized", retryable: false,
        "check the token that the client sends";
    /// No such stream, producer or group, or none that this credential may see.
    NotFound = 4, "not_found", retryable: false,
        "check the name, or create it first";
    /// The name is taken.
    Exists = 5, "exists", retryable: false,
        "choose another name, or say that an existing one will do";
    /// A newer session of this producer exists; this one must stop. Nothing was stored.
    Fenced = 6, "fenced", retryable: false,
        "another session opened this producer: stop one of the two";
    /// The batch does not follow the last stored sequence. The detail is the sequence expected.
    SequenceGap = 7, "sequence_gap", retryable: false,
        "records before this batch are missing: go on from the sequence that the broker expects";
    /// Other content is stored under these sequences. The detail is the last sequence stored.
    SequenceReused = 8, "sequence_reused", retryable: false,
        "these sequences hold other records: use another producer name for other input";
    /// The sequences lie before what is stored, and it can't be shown that these records are the stored ones.
    SequencePast = 9, "sequence_past", retryable: false,
        "publish records in the order of their sequences";
    /// A sparse batch overlaps what is stored. The detail is the last sequence stored.
    SequenceOverlap = 10, "sequence_overlap", retryable: false,
        "cut the batch anew behind the last stored sequence";
    /// The producer's sequences in this stream are sparse and can't be dense again.
    SequenceMode = 11, "sequence_mode", retryable: false,
        "go on with explicit sequences, or use another producer name";
    /// The stream was removed; one of the same name is another stream.
    StreamGone = 12, "stream_gone", retryable: false,
        "the stream was removed: look its name up again and decide where to start";
    /// The same session attached again elsewhere; this attachment ends, the newer one goes on.
    Superseded = 13, "superseded", retryable: false,
        "this session was resumed over another connection; use that one";
    /// A record is beyond a limit.
    RecordTooLarge = 14, "record_too_large", retryable: false,
        "send a smaller record, or raise the broker's record limit";
    /// A batch is beyond a limit.
    BatchTooLarge = 15, "batch_too_large", retryable: false,
        "send smaller batches";
    /// A configured number of streams, producers or the like is reached.
    LimitReached = 16, "limit_reached", retryable: false,
        "remove what is no longer needed, or raise the limit in the broker's configuration";
    /// The broker can't take it now. Nothing was stored.
    Busy = 17, "busy", retryable: true,
        "try again a little later";
    /// No prepared space is left on the disk. Nothing was stored.
    DiskFull = 18, "disk_full", retryable: true,
        "free space on the broker's disk; it goes on by itself";
    /// A write or sync failed and the log takes nothing until the broker restarts. Unanswered batches may or may not be
    /// stored.
    Poisoned = 19, "poisoned", retryable: true,
        "look at the broker's disk, then restart the broker";
    /// What the answer rests on is damaged on disk.
    Damaged = 20, "damaged", retryable: false,
        "run `tidelog verify` on the stopped broker's folder to see what is damaged";
    /// The broker is shutting down.
    Stopping = 21, "stopping", retryable: true,
        "connect again when the broker is back";
    /// The group member lost its lease; what it acknowledged late does not count.
    StaleGeneration = 22, "stale_generation", retryable: false,
        "join the group again; the records are delivered anew";
    /// The position lies behind the stream's end, so it belongs to another history of the log.
    PositionPastEnd = 23, "position_past_end", retryable: false,
        "the position is not of this log: was an older copy restored? choose a new start";
    /// The name breaks the rules for names.
    BadName = 24, "bad_name", retryable: false,
        "use 1 to 255 of A-Z a-z 0-9 . _ -, not starting with '.', without '.dead.'";
    /// The broker does not know this request, or not in this place.
    UnknownRequest = 25, "unknown_request", retryable: false,
        "the broker is older than the client: update it";
    /// A defect of the broker.
    Internal = 26, "internal", retryable: false,
        "look at the broker's log and report it";
    /// It took too long. The effect is unknown unless the request is idempotent.
    TimedOut = 27, "timed_out", retryable: true,
        "try again; look at the broker's load if it stays so";
    /// A part of the transaction or a cursor is not as the transaction expects it. Nothing of it was applied.
    TransactionConflict = 28, "transaction_conflict", retryable: false,
        "read the cursors again and make the transaction anew";
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Bytes of an error's message: enough for a sentence with a name in it, and far below a control frame even when every
/// byte has to be escaped.
const MESSAGE_BYTES_MAX: usize = 1024;

/// An error as it goes over the wire: the answer to a request, or the body of a failure frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({name})")]
pub struct WireError {
    /// Number of the [`ErrorCode`]; one that this version does not know comes from a newer broker.
    pub code: u16,
    /// Name of the code.
    #[serde(default)]
    pub name: String,
    /// What failed, for people.
    pub message: String,
    /// What to do next, for people.
    #[serde(default)]
    pub hint: String,
    /// Whether the very same request can succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// A number that belongs to the code, such as the sequence expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<u64>,
}

impl WireError {
    /// An error of this code. A message above 1 KiB is cut.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        Self {
            code: code.number(),
            name: code.name().to_owned(),
            message,
            hint: code.hint().to_owned(),
            retryable: code.is_retryable(),
            detail: None,
        }
    }

    /// The same error with a number that belongs to its code.
    #[must_use]
    pub fn with_detail(mut self, detail: u64) -> Self {
        self.detail = Some(detail);
        self
    }

    /// The code, or `None` if it is one that this version does not know.
    #[must_use]
    pub fn error_code(&self) -> Option<ErrorCode> {
        ErrorCode::from_number(self.code)
    }
}

/// Why a connection or one of its QUIC streams is closed; an application code of QUIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CloseCode {
    /// Nothing is left to do.
    Done = 0,
    /// The other side broke the protocol.
    ProtocolError = 1,
    /// The broker is shutting down.
    Stopping = 2,
    /// Too many connections or requests.
    Busy = 3,
    /// The credential was refused.
    Unauthorized = 4,
    /// The other side was silent for too long.
    TimedOut = 5,
    /// The session was resumed elsewhere.
    Superseded = 6,
}

impl CloseCode {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The code with this number, or `None` if this version knows none.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<CloseCode> {
        Some(match number {
            0 => CloseCode::Done,
            1 => CloseCode::ProtocolError,
            2 => CloseCode::Stopping,
            3 => CloseCode::Busy,
            4 => CloseCode::Unauthorized,
            5 => CloseCode::TimedOut,
            6 => CloseCode::Superseded,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CONTROL_FRAME_BYTES_MAX;

    #[test]
    fn numbers_and_names_are_unique_and_lead_back_to_their_code() {
        let mut names: Vec<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        for (number, &code) in (1u16..).zip(ErrorCode::ALL) {
            assert_eq!(code.number(), number);
            assert_eq!(ErrorCode::from_number(number), Some(code));
            assert!(!code.hint().is_empty() && !code.hint().ends_with('.'), "{code}");
        }
        assert_eq!(ErrorCode::from_number(0), None);
        assert_eq!(ErrorCode::from_number(29), None);
    }

    #[test]
    fn only_what_passes_by_itself_is_retryable() {
        let retryable: Vec<_> =
            ErrorCode::ALL.iter().filter(|code| code.is_retryable()).map(|code| code.name()).collect();
        assert_eq!(retryable, ["busy", "disk_full", "poisoned", "stopping", "timed_out"]);
    }

    #[test]
    fn close_codes_lead_back_from_their_number() {
        for number in 0..=6 {
            assert_eq!(CloseCode::from_number(number).map(CloseCode::number), Some(number));
        }
        assert_eq!(CloseCode::from_number(7), None);
    }

    #[test]
    fn the_longest_message_fits_a_control_frame_even_if_all_of_it_is_escaped() {
        let error = WireError::new(ErrorCode::Internal, "\u{1}".repeat(1 << 20));
        assert!(serde_json::to_vec(&error).unwrap().len() < CONTROL_FRAME_BYTES_MAX / 8);
        let error = WireError::new(ErrorCode::Internal, "é".repeat(600) + "x");
        assert_eq!(error.message.len(), 1024);
    }

    #[test]
    fn an_error_of_a_newer_broker_keeps_what_it_says() {
        let json = r#"{"code":999,"name":"new_one","message":"m","hint":"h","retryable":true,"more":1}"#;
        let error: WireError = serde_json::from_str(json).unwrap();
        assert_eq!(error.error_code(), None);
        assert!(error.retryable);
        assert_eq!(error.to_string(), "m (new_one)");
    }
}
