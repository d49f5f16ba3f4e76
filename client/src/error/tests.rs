use super::*;
use crate::address::Address;
use crate::quic::QuicConnector;
use crate::trust::{Trust, TrustEnvironment};

#[test]
fn kinds_have_the_documented_exit_codes() {
    let refused = |code| Error::refused(code, "no".into(), None);
    let rows = [
        (refused(ErrorCode::Damaged), 1),
        (refused(ErrorCode::RecordTooLarge), 2),
        (Error::Unreachable { reason: "x".into() }, 3),
        (Error::ForeignProtocol { reason: "x".into() }, 3),
        (refused(ErrorCode::StreamGone), 4),
        (refused(ErrorCode::NotFound), 4),
        (refused(ErrorCode::SequenceReused), 5),
        (refused(ErrorCode::Fenced), 5),
        (Error::Untrusted { reason: "x".into() }, 6),
        (refused(ErrorCode::Unauthorized), 6),
        (refused(ErrorCode::DiskFull), 7),
    ];
    for (error, exit_code) in rows {
        assert_eq!(error.kind().exit_code(), exit_code, "{error:?}");
    }
}

#[test]
fn a_timeout_remembers_that_the_broker_was_only_busy() {
    let timed_out = |cause: Error| Error::TimedOut {
        waited: Duration::from_secs(30),
        doing: "publishing",
        cause: Some(Box::new(cause)),
    };
    let busy = timed_out(Error::refused(ErrorCode::Busy, "no room".into(), None));
    assert_eq!((busy.kind(), busy.code()), (ErrorKind::Busy, Some(ErrorCode::Busy)));
    assert!(busy.to_string().contains("30 s while publishing; last: no room"), "{busy}");
    let lost = timed_out(Error::Lost { reason: "refused".into() });
    assert_eq!(lost.kind(), ErrorKind::Unreachable);
    assert!(lost.is_retryable() && !lost.is_safe_to_resend());
}

#[test]
fn a_close_code_decides_whether_a_new_connection_helps() {
    let closed = |code: CloseCode| Error::from(TransportError::Closed { code: code as u32, reason: String::new() });
    assert!(closed(CloseCode::Stopping).is_retryable());
    assert!(closed(CloseCode::Busy).is_retryable());
    assert!(!closed(CloseCode::Unauthorized).is_retryable());
    assert_eq!(closed(CloseCode::Superseded).code(), Some(ErrorCode::Superseded));
}

/// What every code of the wire means for whoever may try again: whether it can help, and whether nothing was done.
#[test]
fn every_code_says_whether_to_try_again_and_whether_that_is_safe() {
    for &code in ErrorCode::ALL {
        let (retryable, safe) = match code {
            ErrorCode::Busy | ErrorCode::DiskFull | ErrorCode::Stopping => (true, true),
            // The broker does not know itself what became of what was under way.
            ErrorCode::Poisoned | ErrorCode::TimedOut => (true, false),
            ErrorCode::Internal => (false, false),
            ErrorCode::Malformed
            | ErrorCode::UnsupportedVersion
            | ErrorCode::Unauthorized
            | ErrorCode::NotFound
            | ErrorCode::Exists
            | ErrorCode::Fenced
            | ErrorCode::SequenceGap
            | ErrorCode::SequenceReused
            | ErrorCode::SequencePast
            | ErrorCode::SequenceOverlap
            | ErrorCode::SequenceMode
            | ErrorCode::StreamGone
            | ErrorCode::Superseded
            | ErrorCode::RecordTooLarge
            | ErrorCode::BatchTooLarge
            | ErrorCode::LimitReached
            | ErrorCode::Damaged
            | ErrorCode::StaleGeneration
            | ErrorCode::PositionPastEnd
            | ErrorCode::BadName
            | ErrorCode::UnknownRequest
            | ErrorCode::TransactionConflict => (false, true),
        };
        // As the answer to a batch, and as the answer to a request.
        for error in [Error::refused(code, "no".into(), None), Error::from(WireError::new(code, "no"))] {
            assert_eq!((error.is_retryable(), error.is_safe_to_resend()), (retryable, safe), "{code}");
            assert_eq!((error.code(), error.name()), (Some(code), code.name()));
            let unsettled = error.unsettled();
            assert_eq!((unsettled.is_retryable(), unsettled.is_safe_to_resend()), (retryable, false), "{code}");
            assert_eq!((unsettled.code(), unsettled.name()), (Some(code), code.name()));
        }
    }
}

/// One of each variant, with its answers; the match makes a new variant bring its own.
#[test]
fn every_error_says_what_kind_it_is_and_whether_to_try_again() {
    let name = || StreamName::new("s").unwrap();
    let reason = || "why".to_owned();
    let address: Address = "nowhere.example:1".parse().unwrap();
    let nowhere = std::path::PathBuf::from("/there/is/no/such/folder");
    let environment = TrustEnvironment {
        working_directory: nowhere.clone(),
        runtime_directory: None,
        home: None,
        system_directory: nowhere.clone(),
        user: 0,
    };
    let all = [
        Error::Address("".parse::<Address>().unwrap_err()),
        Error::Trust(Trust::find(&address, None, &environment).unwrap_err()),
        Error::Tls(QuicConnector::new(&address, &Trust::Authorities { file: nowhere.join("ca.pem") }).unwrap_err()),
        Error::Untrusted { reason: reason() },
        Error::ForeignProtocol { reason: reason() },
        Error::Unreachable { reason: reason() },
        Error::Lost { reason: reason() },
        Error::TimedOut { waited: Duration::from_secs(30), doing: "publishing", cause: None },
        Error::refused(ErrorCode::Busy, reason(), None),
        Error::AcknowledgedLost { stream: name(), told: Sequence::new(5), found: Sequence::new(3) },
        Error::WrittenByAnother { stream: name(), sent: Sequence::new(5), found: Sequence::new(7) },
        Error::AnotherLog { first: reason(), found: reason() },
        Error::Record(RecordError::TooLarge { bytes: 2, max: 1 }),
        Error::ChecksumMismatch { stream: name(), offset: Offset::new(1) },
        Error::Protocol { reason: reason() },
        Error::Unsettled { cause: Box::new(Error::refused(ErrorCode::Fenced, reason(), None)) },
        Error::Closed,
        Error::Randomness { reason: reason() },
    ];
    let mut variants = std::collections::HashSet::new();
    for error in all {
        let expected = match &error {
            Error::Address(_) | Error::Record(_) => (ErrorKind::Usage, false, true),
            Error::Trust(_) | Error::Tls(_) | Error::Untrusted { .. } => (ErrorKind::Access, false, true),
            Error::ForeignProtocol { .. } => (ErrorKind::Unreachable, false, true),
            Error::Unreachable { .. } => (ErrorKind::Unreachable, true, true),
            Error::Lost { .. } | Error::TimedOut { .. } => (ErrorKind::Unreachable, true, false),
            Error::Refused { .. } => (ErrorKind::Busy, true, true),
            Error::Unsettled { .. } => (ErrorKind::Conflict, false, false),
            Error::WrittenByAnother { .. } | Error::AnotherLog { .. } => (ErrorKind::Conflict, false, false),
            Error::AcknowledgedLost { .. } | Error::ChecksumMismatch { .. } | Error::Protocol { .. } => {
                (ErrorKind::Failed, false, false)
            }
            Error::Closed | Error::Randomness { .. } => (ErrorKind::Failed, false, true),
        };
        assert_eq!((error.kind(), error.is_retryable(), error.is_safe_to_resend()), expected, "{error:?}");
        assert!(!error.to_string().is_empty() && !error.name().is_empty());
        variants.insert(std::mem::discriminant(&error));
        // An end with records in doubt is never safe, and otherwise what it was.
        let (kind, name) = (error.kind(), error.name().to_owned());
        let unsettled = error.unsettled();
        assert!(!unsettled.is_safe_to_resend());
        assert_eq!((unsettled.kind(), unsettled.name()), (kind, name.as_str()));
    }
    assert_eq!(variants.len(), 18, "one of each");
}

#[test]
fn a_code_of_a_newer_broker_keeps_its_word_on_trying_again_and_is_never_called_safe() {
    for retryable in [false, true] {
        let wire = WireError { code: 999, retryable, ..WireError::new(ErrorCode::Busy, "new") };
        let error = Error::from(wire);
        assert_eq!((error.code(), error.is_retryable(), error.is_safe_to_resend()), (None, retryable, false));
    }
}
