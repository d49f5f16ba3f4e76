//! One client's connection: hello, control requests, and the QUIC streams that it opens for publishing and reading.

use std::rc::Rc;
use std::sync::Arc;

use tidelog_protocol::{
    BrokerState, CloseCode, Connection, Duplex, ErrorCode, FrameKind, Hello, PROTOCOL_VERSION, Request, RequestFrame,
    Response, ResponseFrame, ResponseResult, SendHalf, StatusDescription, WireError, decode_json,
};
use tokio::sync::oneshot;

use crate::engine::Engine;
use crate::sequencer::{ReplySender, error_of};
use crate::server::frames::{FrameReader, SessionEnd, write_failure, write_json};
use crate::server::{deliver, publish};

/// Streams or producers in one page of a list.
const LIST_ITEMS_MAX: u32 = tidelog_protocol::LIST_ITEMS_MAX;

/// Serves a connection to its end. `admit` is called once its hello was accepted.
pub(crate) async fn serve(engine: Rc<Engine>, connection: Arc<dyn Connection>, admit: impl FnOnce()) {
    let hello_time = tokio::time::timeout(HELLO_TIMEOUT, say_hello(&engine, connection.as_ref())).await;
    let control = match hello_time {
        Ok(Ok(control)) => control,
        Ok(Err(_)) => {
            // A close drops what has not left yet: the client closes once it has read why.
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, connection.closed()).await;
            return connection.close(CloseCode::ProtocolError, "the hello was refused");
        }
        Err(_) => return connection.close(CloseCode::TimedOut, "no hello came in time"),
    };
    admit();
    let _counted = engine.counters.connection();
    let opened = async {
        // The connection's end shows here.
        while let Ok(duplex) = connection.accept().await {
            let (engine, connection) = (Rc::clone(&engine), Arc::clone(&connection));
            tokio::task::spawn_local(async move {
                // A session that waits for news neither reads nor writes, so it would not notice.
                tokio::select! {
                    biased;
                    () = serve_quic_stream(engine, duplex) => {}
                    _ = connection.closed() => {}
                }
            });
        }
    };
    tokio::select! {
        biased;
        () = opened => {}
        // The control QUIC stream is the session: without it the client is gone.
        () = serve_control(&engine, control) => connection.close(CloseCode::Done, "the control stream ended"),
    }
}

/// A connection that has not said hello after this long is closed.
const HELLO_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// How long a client that was refused gets to read why.
const FAREWELL_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);

struct Control {
    send: Box<dyn SendHalf>,
    reader: FrameReader,
}

async fn say_hello(engine: &Engine, connection: &dyn Connection) -> Result<Control, SessionEnd> {
    let Duplex { mut send, receive } = connection.accept().await?;
    let mut reader = FrameReader::new(receive, engine);
    match greet(engine, send.as_mut(), &mut reader).await {
        Ok(()) => Ok(Control { send, reader }),
        Err(SessionEnd::Failure(failure)) => {
            write_failure(send.as_mut(), SessionEnd::Failure(failure.clone())).await;
            Err(SessionEnd::Failure(failure))
        }
        Err(end) => Err(end),
    }
}

async fn greet(engine: &Engine, send: &mut dyn SendHalf, reader: &mut FrameReader) -> Result<(), SessionEnd> {
    let hello = match reader.next().await? {
        Some(frame) if frame.kind == FrameKind::Hello => decode_json::<Hello>(frame.kind, &frame.body)?,
        _ => return Err(SessionEnd::failure(ErrorCode::Malformed, "a connection begins with a hello")),
    };
    if !hello.versions.contains(&PROTOCOL_VERSION) {
        let message =
            format!("this broker speaks version {PROTOCOL_VERSION} of the protocol, the client {:?}", hello.versions);
        return Err(SessionEnd::failure(ErrorCode::UnsupportedVersion, message));
    }
    let mut welcome = engine.welcome.clone();
    welcome.time_ms = engine.now().time.wall_ms;
    write_json(send, FrameKind::Welcome, &welcome).await?;
    Ok(())
}

async fn serve_control(engine: &Rc<Engine>, mut control: Control) {
    let end = loop {
        let frame = match control.reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return control.send.finish(),
            Err(end) => break end,
        };
        if frame.kind != FrameKind::Request {
            break SessionEnd::failure(ErrorCode::Malformed, format!("a frame {:?} has no place here", frame.kind));
        }
        let (id, result) = match RequestFrame::decode(&frame.body) {
            Ok(RequestFrame { id, request }) => (id, answer(engine, request).await),
            Err(refused) => match refused.id {
                Some(id) => (id, ResponseResult::Error(refused.error)),
                None => break SessionEnd::Failure(refused.error),
            },
        };
        if let Err(error) = write_json(control.send.as_mut(), FrameKind::Response, &ResponseFrame { id, result }).await
        {
            break SessionEnd::Transport(error);
        }
    };
    write_failure(control.send.as_mut(), end).await;
}

/// Answers one control request. All of them stand here; a new one without an arm does not compile.
async fn answer(engine: &Engine, request: Request) -> ResponseResult {
    match request {
        Request::CreateStream { name, if_not_exists, settings } => {
            decide(engine, |to| {
                let now = engine.now();
                engine.sequencer.borrow_mut().create_stream(&name, if_not_exists, &settings, now, to)
            })
            .await
        }
        Request::OpenProducer { name, found, attempt } => {
            decide(engine, |to| engine.sequencer.borrow_mut().open_producer(&name, found, attempt, engine.now(), to))
                .await
        }
        Request::ListStreams { after, limit } => {
            let limit = limit.clamp(1, LIST_ITEMS_MAX) as usize;
            let (streams, more) = engine.sequencer.borrow().durable().catalogue.list(after.as_ref(), limit);
            ResponseResult::Ok(Response::Streams { streams, more })
        }
        Request::StreamInfo { name } => {
            let sequencer = engine.sequencer.borrow();
            let catalogue = &sequencer.durable().catalogue;
            match catalogue.find(&name).and_then(|id| catalogue.describe(id)) {
                Some(stream) => ResponseResult::Ok(Response::Stream(stream)),
                None => {
                    let message = format!("there is no stream '{name}'");
                    ResponseResult::Error(WireError::new(ErrorCode::NotFound, message))
                }
            }
        }
        Request::FindProducer { name } => {
            let sequencer = engine.sequencer.borrow();
            ResponseResult::Ok(Response::Producer(sequencer.durable().producers.describe(&name)))
        }
        Request::ProducerStream { producer, stream } => engine.sequencer.borrow().producer_stream(producer, stream),
        Request::ListProducers { after, limit } => {
            let limit = limit.clamp(1, LIST_ITEMS_MAX) as usize;
            let (producers, more) = engine.sequencer.borrow().durable().producers.list(after.as_ref(), limit);
            ResponseResult::Ok(Response::Producers { producers, more })
        }
        Request::BrokerStatus => ResponseResult::Ok(Response::Status(status(engine))),
        Request::AttachProducer { .. } | Request::Subscribe { .. } => {
            let message = "this request opens a QUIC stream of its own; it has no place on the control one";
            ResponseResult::Error(WireError::new(ErrorCode::Malformed, message))
        }
    }
}

/// Puts a request to the sequencer, again when there is room if there was none, and waits for its answer.
async fn decide(engine: &Engine, mut put: impl FnMut(ReplySender) -> Result<(), ReplySender>) -> ResponseResult {
    let (mut to, answer) = oneshot::channel();
    loop {
        let room = engine.room();
        let put = put(to);
        engine.touched();
        match put {
            Ok(()) => break,
            Err(back) => to = back,
        }
        room.await;
    }
    // Dropped unanswered: the log was poisoned meanwhile, and what became of the request is not known.
    answer.await.unwrap_or_else(|_| error_of(ErrorCode::Poisoned))
}

fn status(engine: &Engine) -> StatusDescription {
    let sequencer = engine.sequencer.borrow();
    let counters = &engine.counters;
    StatusDescription {
        broker: engine.welcome.broker.clone(),
        log_id: engine.welcome.log_id.clone(),
        start_count: engine.welcome.start_count,
        medium: engine.welcome.medium,
        state: if sequencer.is_poisoned() { BrokerState::Poisoned } else { BrokerState::Ready },
        time_ms: engine.now().time.wall_ms,
        uptime_ms: engine.uptime().as_millis() as u64,
        streams: sequencer.durable().catalogue.len() as u64,
        producers: sequencer.durable().producers.len() as u64,
        connections: counters.connections.get(),
        records_published: counters.records_published.get(),
        bytes_published: counters.bytes_published.get(),
        duplicates_suppressed: counters.duplicates_suppressed.get(),
        publishes_refused: counters.refusals().map(|(_, count)| count).sum(),
        records_delivered: counters.records_delivered.get(),
        log_bytes: counters.log_bytes.get(),
        disk_free_bytes: Some(counters.disk_free_bytes.get()),
    }
}

/// A QUIC stream that the client opened: its first frame says what for.
async fn serve_quic_stream(engine: Rc<Engine>, duplex: Duplex) {
    let Duplex { mut send, receive } = duplex;
    let mut reader = FrameReader::new(receive, &engine);
    let end = match first_request(&mut reader).await {
        Ok(RequestFrame { id, request: Request::AttachProducer { producer, epoch, attempt, accepted } }) => {
            let attach = publish::Attach { id, producer, epoch, attempt, accepted };
            publish::serve(&engine, send.as_mut(), &mut reader, attach).await
        }
        Ok(RequestFrame { id, request: Request::Subscribe { stream, from, follow } }) => {
            let subscribe = deliver::Subscribe { id, stream, from, follow };
            deliver::serve(&engine, send.as_mut(), &mut reader, subscribe).await
        }
        Ok(RequestFrame { request, .. }) => {
            let message = format!("{} belongs on the control stream", request.op());
            Err(SessionEnd::failure(ErrorCode::Malformed, message))
        }
        Err(end) => Err(end),
    };
    match end {
        Ok(()) => send.finish(),
        Err(end) => write_failure(send.as_mut(), end).await,
    }
    reader.stop();
}

async fn first_request(reader: &mut FrameReader) -> Result<RequestFrame, SessionEnd> {
    match reader.next().await? {
        Some(frame) if frame.kind == FrameKind::Request => {
            RequestFrame::decode(&frame.body).map_err(|refused| SessionEnd::Failure(refused.error))
        }
        _ => Err(SessionEnd::failure(ErrorCode::Malformed, "a QUIC stream begins with a request")),
    }
}
