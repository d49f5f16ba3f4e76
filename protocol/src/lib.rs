//! The vocabulary and the wire bytes of the tidelog event broker.
//!
//! Names, positions, records, batches, frames and control requests, each with its encoder and a decoder that treats
//! every byte as hostile: lengths are checked against a limit before anything is allocated, and bytes that break the
//! format are an error, never a panic. There is no socket, file, clock or runtime in this crate; [`Connection`] and its
//! halves are traits that both sides implement over QUIC or in memory.
//!
//! `PROTOCOL.md` beside this crate draws every byte and carries test vectors; a test holds the two together.
//!
//! ```
//! use bytes::Bytes;
//! use tidelog_protocol::{BatchBuilder, BatchRecords, Limits, Record, Sequence, StreamId, check_batch};
//!
//! let limits = Limits::default();
//! let mut builder = BatchBuilder::new();
//! builder.push(&Record::new(Bytes::from_static(b"first")), &limits)?;
//! builder.push_value(b"second", &limits)?;
//! let batch = builder.finish_dense(StreamId::new(7), Sequence::new(1));
//!
//! let header = check_batch(&batch, &limits)?;
//! assert_eq!(header.last, Sequence::new(2));
//! let (sequence, record) = BatchRecords::new(&batch)?.nth(1).expect("two records were pushed")?;
//! assert_eq!((sequence, &record.value[..]), (Sequence::new(2), &b"second"[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod batch;
mod batch_builder;
mod batch_header;
mod batch_records;
mod checksum;
mod control;
mod deliver;
mod error;
mod frame;
mod hello;
mod leb128;
mod limits;
mod names;
mod position;
mod publish;
mod record;
mod transport;

pub use batch::{BatchError, check_batch, verify_content_crc};
pub use batch_builder::BatchBuilder;
pub use batch_header::{BATCH_HEADER_LEN, BatchFlags, BatchHeader};
pub use batch_records::BatchRecords;
pub use control::{
    BrokerState, Place, ProducerDescription, Request, RequestError, RequestFrame, Response, ResponseFrame,
    ResponseResult, StartAt, StatusDescription, StreamDescription, StreamSettings,
};
pub use deliver::{
    DELIVER_HEADER_LEN, Damaged, DeliverHeader, Delivery, Gap, GapCause, decode_damaged, decode_end, decode_gap,
    decode_producer_name, encode_damaged, encode_deliver_header, encode_end, encode_gap, encode_producer_name,
};
pub use error::{CloseCode, ErrorCode, WireError};
pub use frame::{
    FRAME_HEADER_LEN, Frame, FrameDecoder, FrameError, FrameKind, decode_json, encode_frame_header, encode_json_frame,
    frame_limit,
};
pub use hello::{Hello, MediumKind, Welcome};
pub use leb128::NumberError;
pub use limits::{
    ACKNOWLEDGEMENT_DELAY_MS_MAX, ALPN, BATCH_CONTENT_BYTES_MAX, BATCH_RECORDS_MAX, CLIENT_WINDOW_BYTES_DEFAULT,
    CONTROL_FRAME_BYTES_MAX, HEADERS_BYTES_MAX, HEADERS_COUNT_MAX, INITIAL_CONGESTION_WINDOW_BYTES, KEY_BYTES_MAX,
    LIST_ITEMS_MAX, Limits, MEASURE_APPEND_BYTES_MAX, MEASURE_APPENDS_MAX, MEASURE_BYTES_MAX, MEASURE_SOURCE_BYTES_MAX,
    NAME_BYTES_MAX, PROTOCOL_VERSION, RECORD_BYTES_MAX_CEILING, RECORD_BYTES_MAX_DEFAULT, RECORD_OVERHEAD_BYTES_MAX,
    SEQUENCE_DELTA_BYTES_MAX, UDP_PAYLOAD_BYTES_MAX,
};
pub use names::{GroupName, NameError, NameKind, ProducerName, StreamName};
pub use position::{AttemptId, AttemptIdError, Epoch, Offset, ProducerId, Sequence, StreamId};
pub use publish::{
    ANSWERS_PER_FRAME_MAX, Answer, Outcome, decode_accepted, decode_answers, encode_accepted, encode_answers,
};
pub use record::{Header, Record, RecordError, check_body};
pub use transport::{BoxFuture, Connection, Connector, Duplex, ReceiveHalf, SendHalf, TransportError, read, write_all};
