//! Requests and responses of the control channel, as JSON.
//!
//! Unknown fields are ignored on both sides, so that old and new clients and brokers talk to each other. A broker reads a
//! request with [`RequestFrame::decode`], which tells an unknown request from a malformed one and keeps its id, so that
//! it can be answered without giving up the connection.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, WireError};
use crate::hello::MediumKind;
use crate::names::{ProducerName, StreamName};
use crate::position::{AttemptId, Epoch, Offset, ProducerId, Sequence, StreamId};

/// A request and the number that its answer will carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFrame {
    /// Chosen by the client.
    pub id: u64,
    /// The request.
    #[serde(flatten)]
    pub request: Request,
}

/// What a client can ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Makes a stream. Answer: [`Response::Stream`], or `exists`.
    CreateStream {
        /// Its name.
        name: StreamName,
        /// Whether an existing stream of this name is as good.
        #[serde(default)]
        if_not_exists: bool,
        /// How long it keeps its records.
        #[serde(default)]
        settings: StreamSettings,
    },
    /// Removes a stream for good, with its records and what producers have written to it. It is named by its id, so that
    /// a request that is sent again never meets another stream of the same name. Answer: [`Response::Stream`] as it was,
    /// or `stream_gone`.
    RemoveStream {
        /// The stream.
        stream: StreamId,
    },
    /// One page of the streams in the order of their names. Answer: [`Response::Streams`].
    ListStreams {
        /// The last name of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<StreamName>,
        /// Streams in the page; the broker gives at most [`LIST_ITEMS_MAX`](crate::LIST_ITEMS_MAX).
        limit: u32,
    },
    /// Looks a stream up. Answer: [`Response::Stream`], or `not_found`.
    StreamInfo {
        /// Its name.
        name: StreamName,
    },
    /// Looks a producer's id and epoch up. Answer: [`Response::Producer`], with id and epoch 0 if it is unknown.
    FindProducer {
        /// Its name.
        name: ProducerName,
    },
    /// Makes the producer if need be and raises its epoch, if that is still the one found: older sessions are fenced.
    /// Answer: [`Response::Producer`] with the new epoch; again the same one for the same attempt; `fenced` if another
    /// session came first.
    OpenProducer {
        /// Its name.
        name: ProducerName,
        /// The epoch that `find_producer` told.
        found: Epoch,
        /// Names this attempt through all of its retries.
        attempt: AttemptId,
    },
    /// What is stored of a producer in a stream. Answer: [`Response::ProducerStream`].
    ProducerStream {
        /// The producer.
        producer: ProducerId,
        /// The stream.
        stream: StreamId,
    },
    /// One page of the producers in the order of their names. Answer: [`Response::Producers`].
    ListProducers {
        /// The last name of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<ProducerName>,
        /// Producers in the page; the broker gives at most [`LIST_ITEMS_MAX`](crate::LIST_ITEMS_MAX).
        limit: u32,
    },
    /// How the broker is. Answer: [`Response::Status`].
    BrokerStatus,
    /// Opens a QUIC stream for publishing. Answer: [`Response::Attached`], then answers to batches.
    AttachProducer {
        /// The producer; [`ProducerId::ANONYMOUS`] for none.
        producer: ProducerId,
        /// The epoch that `open_producer` gave; [`Epoch::NONE`] for none.
        epoch: Epoch,
        /// The attempt that opened it. Attaching again with the same one supersedes the QUIC stream before.
        attempt: AttemptId,
        /// Counts what was attached with this attempt. The network may bring an older one last; it supersedes nothing.
        #[serde(default)]
        attachment: u64,
        /// Whether to tell, too, what is ordered and not yet durable.
        #[serde(default)]
        accepted: bool,
    },
    /// Opens a QUIC stream for reading. Answer: [`Response::Subscribed`], then deliveries.
    Subscribe {
        /// The stream to read.
        stream: StreamId,
        /// Where to start.
        from: StartAt,
        /// Whether to go on behind the end that the stream has now.
        #[serde(default)]
        follow: bool,
    },
    /// Measures the disk that the log is kept on: appends to a file beside it, each synced before the next. Answer:
    /// [`Response::SyncsMeasured`]; `busy` while another one is measured.
    MeasureSync {
        /// Bytes of each append, 1 to [`MEASURE_APPEND_BYTES_MAX`](crate::MEASURE_APPEND_BYTES_MAX).
        append_bytes: u32,
        /// Appends, 1 to [`MEASURE_APPENDS_MAX`](crate::MEASURE_APPENDS_MAX); their bytes together at most
        /// [`MEASURE_BYTES_MAX`](crate::MEASURE_BYTES_MAX).
        appends: u32,
    },
    /// Opens a QUIC stream on which every byte comes back. Answer: [`Response::Measuring`]; then there are bytes on it and
    /// no frames. The broker finishes it when the client has.
    Echo,
    /// Opens a QUIC stream on which every byte is read and dropped. Answer: [`Response::Measuring`]; then the client sends
    /// bytes and no frames, and when it has finished it is answered [`Response::Sunk`].
    Sink,
    /// Opens a QUIC stream on which bytes come. Answer: [`Response::Measuring`], behind which there are zeros and no
    /// frames; then the broker finishes it.
    Source {
        /// Bytes, at most [`MEASURE_SOURCE_BYTES_MAX`](crate::MEASURE_SOURCE_BYTES_MAX).
        bytes: u64,
    },
}

/// Where a request is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the control QUIC stream, in any number.
    Control,
    /// As the first frame of a QUIC stream of its own.
    OpensQuicStream,
}

impl Request {
    /// Every name that [`op`](Self::op) can give.
    pub const OPS: &[&str] = &[
        "create_stream",
        "remove_stream",
        "list_streams",
        "stream_info",
        "find_producer",
        "open_producer",
        "producer_stream",
        "list_producers",
        "broker_status",
        "attach_producer",
        "subscribe",
        "measure_sync",
        "echo",
        "sink",
        "source",
    ];

    /// Where this request is allowed.
    #[must_use]
    pub const fn place(&self) -> Place {
        match self {
            Request::CreateStream { .. }
            | Request::RemoveStream { .. }
            | Request::ListStreams { .. }
            | Request::StreamInfo { .. }
            | Request::FindProducer { .. }
            | Request::OpenProducer { .. }
            | Request::ProducerStream { .. }
            | Request::ListProducers { .. }
            | Request::BrokerStatus
            | Request::MeasureSync { .. } => Place::Control,
            Request::AttachProducer { .. }
            | Request::Subscribe { .. }
            | Request::Echo
            | Request::Sink
            | Request::Source { .. } => Place::OpensQuicStream,
        }
    }

    /// The request's name on the wire.
    #[must_use]
    pub const fn op(&self) -> &'static str {
        match self {
            Request::CreateStream { .. } => "create_stream",
            Request::RemoveStream { .. } => "remove_stream",
            Request::ListStreams { .. } => "list_streams",
            Request::StreamInfo { .. } => "stream_info",
            Request::FindProducer { .. } => "find_producer",
            Request::OpenProducer { .. } => "open_producer",
            Request::ProducerStream { .. } => "producer_stream",
            Request::ListProducers { .. } => "list_producers",
            Request::BrokerStatus => "broker_status",
            Request::AttachProducer { .. } => "attach_producer",
            Request::Subscribe { .. } => "subscribe",
            Request::MeasureSync { .. } => "measure_sync",
            Request::Echo => "echo",
            Request::Sink => "sink",
            Request::Source { .. } => "source",
        }
    }
}

/// Why a frame is no request that this version knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    /// The request's id, if that much could be read: then the error can be answered under it.
    pub id: Option<u64>,
    /// What to answer: `unknown_request` or `malformed`.
    pub error: WireError,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for RequestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl RequestFrame {
    /// Reads a request frame's body.
    ///
    /// # Errors
    /// [`RequestError`] with `unknown_request` if the body is a request of another version, else with `malformed`.
    pub fn decode(body: &[u8]) -> Result<RequestFrame, RequestError> {
        /// What every request of every version has.
        #[derive(Deserialize)]
        struct Head {
            id: u64,
            op: String,
        }
        let error = match serde_json::from_slice(body) {
            Ok(request) => return Ok(request),
            Err(error) => error,
        };
        let malformed = WireError::new(ErrorCode::Malformed, format!("the request is malformed: {error}"));
        Err(match serde_json::from_slice::<Head>(body) {
            Ok(Head { id, op }) if !Request::OPS.contains(&op.as_str()) => {
                let message = format!("this broker knows no request {op:?}");
                RequestError { id: Some(id), error: WireError::new(ErrorCode::UnknownRequest, message) }
            }
            Ok(Head { id, .. }) => RequestError { id: Some(id), error: malformed },
            Err(_) => RequestError { id: None, error: malformed },
        })
    }
}

/// How long a stream keeps its records. Told and kept, not yet acted on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamSettings {
    /// Milliseconds that a record is kept at least; for ever if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
    /// Stored bytes above which the oldest records go; no bound if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// Where a subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum StartAt {
    /// At the first record kept.
    Start,
    /// Behind the last durable record.
    End,
    /// At this offset; behind the end it is `position_past_end`.
    Offset {
        /// The offset.
        offset: Offset,
    },
    /// So many records before the end, or at the first one kept.
    Last {
        /// Records.
        count: u64,
    },
    /// At the first record that the broker ordered at this time or later.
    Time {
        /// Milliseconds since 1970.
        time_ms: i64,
    },
}

/// An answer and the number of its request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseFrame {
    /// The id of the request.
    pub id: u64,
    /// What came of it.
    pub result: ResponseResult,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseResult {
    /// It was done.
    Ok(Response),
    /// It was not done.
    Error(WireError),
}

/// What a broker answers when a request was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Response {
    /// One stream.
    Stream(StreamDescription),
    /// One page of streams.
    Streams {
        /// In the order of their names.
        streams: Vec<StreamDescription>,
        /// Whether there are more behind the last one.
        more: bool,
    },
    /// One producer.
    Producer(ProducerDescription),
    /// One page of producers.
    Producers {
        /// In the order of their names.
        producers: Vec<ProducerDescription>,
        /// Whether there are more behind the last one.
        more: bool,
    },
    /// What is stored of a producer in a stream.
    ProducerStream {
        /// The last sequence stored; [`Sequence::NONE`] if nothing was.
        last_sequence: Sequence,
        /// Its offset, if known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last_offset: Option<Offset>,
        /// CRC-32 over the body of the last record; 0 if there is none.
        last_record_crc: u32,
        /// Whether the sequences are sparse, which they stay.
        sparse: bool,
    },
    /// The QUIC stream takes batches now.
    Attached,
    /// The QUIC stream delivers now.
    Subscribed {
        /// Offset of the first record that will be delivered.
        start: Offset,
        /// The durable tail as it is now; without `follow` the subscription ends there.
        tail: Offset,
    },
    /// How the broker is.
    Status(StatusDescription),
    /// How long each append and its sync took.
    SyncsMeasured {
        /// In the order of the appends; empty if the log is kept in memory, where there is no disk to measure.
        nanoseconds: Vec<u64>,
    },
    /// What follows on the QUIC stream is bytes.
    Measuring,
    /// All that was sent has been read.
    Sunk {
        /// Bytes behind the request.
        bytes: u64,
    },
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamDescription {
    /// Its name.
    pub name: StreamName,
    /// Its id: another one than that of any earlier stream of this name.
    pub id: StreamId,
    /// The first offset kept.
    pub head: Offset,
    /// The next offset, as far as it is durable.
    pub tail: Offset,
    /// Stored bytes.
    pub bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
}

/// One producer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerDescription {
    /// Its name.
    pub name: ProducerName,
    /// Its id; 0 if the name is unknown.
    pub id: ProducerId,
    /// Its current epoch; [`Epoch::NONE`] if the name is unknown.
    pub epoch: Epoch,
}

/// How a broker is. Counters run from its start; what the other side left out is 0 or empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusDescription {
    /// `name/version` of the broker.
    #[serde(default)]
    pub broker: String,
    /// Which log this is.
    pub log_id: String,
    /// Counts the broker's starts on this log.
    pub start_count: u64,
    /// What the log is kept on.
    pub medium: MediumKind,
    /// What it can do now.
    pub state: BrokerState,
    /// The broker's clock in milliseconds since 1970.
    pub time_ms: i64,
    /// Milliseconds since it is ready.
    #[serde(default)]
    pub uptime_ms: u64,
    /// Streams.
    #[serde(default)]
    pub streams: u64,
    /// Named producers.
    #[serde(default)]
    pub producers: u64,
    /// Connections open now.
    #[serde(default)]
    pub connections: u64,
    /// Records stored, duplicates not counted.
    #[serde(default)]
    pub records_published: u64,
    /// Bytes of batches stored.
    #[serde(default)]
    pub bytes_published: u64,
    /// Records recognised as stored before.
    #[serde(default)]
    pub duplicates_suppressed: u64,
    /// Batches refused.
    #[serde(default)]
    pub publishes_refused: u64,
    /// Records handed to subscriptions.
    #[serde(default)]
    pub records_delivered: u64,
    /// Bytes of the log.
    #[serde(default)]
    pub log_bytes: u64,
    /// Bytes free where the log is kept, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_free_bytes: Option<u64>,
}

/// What a broker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrokerState {
    /// Everything.
    Ready,
    /// All but publishes, until there is space.
    DiskFull,
    /// Only reads up to the durable position, until it is restarted.
    Poisoned,
    /// It is shutting down.
    Stopping,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{CONTROL_FRAME_BYTES_MAX, LIST_ITEMS_MAX, NAME_BYTES_MAX};

    #[test]
    fn a_request_of_a_newer_version_is_told_from_a_malformed_one_and_keeps_its_id() {
        let refused = |body: &str| {
            let refused = RequestFrame::decode(body.as_bytes()).unwrap_err();
            (refused.id, refused.error.error_code().unwrap())
        };
        assert_eq!(refused(r#"{"id":7,"op":"foretell","how":1}"#), (Some(7), ErrorCode::UnknownRequest));
        assert_eq!(refused(r#"{"id":7,"op":"stream_info"}"#), (Some(7), ErrorCode::Malformed));
        assert_eq!(refused(r#"{"id":7,"op":"stream_info","name":"a b"}"#), (Some(7), ErrorCode::Malformed));
        assert_eq!(refused(r#"{"id":-7,"op":"stream_info","name":"a"}"#), (None, ErrorCode::Malformed));
        assert_eq!(refused(r#"{"id":7}"#), (None, ErrorCode::Malformed));
        assert_eq!(refused("\u{0}"), (None, ErrorCode::Malformed));
    }

    #[test]
    fn unknown_fields_are_ignored_and_optional_ones_may_be_missing() {
        let body = br#"{"new":[1],"op":"create_stream","id":1,"name":"a","settings":{"max_parts":3}}"#;
        let request = Request::CreateStream {
            name: StreamName::new("a").unwrap(),
            if_not_exists: false,
            settings: StreamSettings::default(),
        };
        assert_eq!(RequestFrame::decode(body), Ok(RequestFrame { id: 1, request }));
        let body = br#"{"id":1,"result":{"ok":{"kind":"attached","since":5}}}"#;
        let response: ResponseFrame = serde_json::from_slice(body).unwrap();
        assert_eq!(response.result, ResponseResult::Ok(Response::Attached));
    }

    #[test]
    fn numbers_keep_all_64_bits_through_the_tagged_forms() {
        let request = Request::Subscribe {
            stream: StreamId::new(u64::MAX),
            from: StartAt::Offset { offset: Offset::new(u64::MAX - 1) },
            follow: true,
        };
        let frame = RequestFrame { id: u64::MAX, request };
        assert_eq!(RequestFrame::decode(&serde_json::to_vec(&frame).unwrap()), Ok(frame));
    }

    #[test]
    fn the_largest_page_of_a_listing_fits_a_control_frame() {
        let name = "x".repeat(NAME_BYTES_MAX);
        let description = StreamDescription {
            name: StreamName::new(&name).unwrap(),
            id: StreamId::new(u64::MAX),
            head: Offset::new(u64::MAX),
            tail: Offset::new(u64::MAX),
            bytes: u64::MAX,
            created_ms: i64::MIN,
        };
        let streams = vec![description; LIST_ITEMS_MAX as usize];
        let response = Response::Streams { streams, more: false };
        let frame = ResponseFrame { id: u64::MAX, result: ResponseResult::Ok(response) };
        let bytes = serde_json::to_vec(&frame).unwrap().len();
        assert!(bytes <= CONTROL_FRAME_BYTES_MAX, "{bytes}");
    }
}
