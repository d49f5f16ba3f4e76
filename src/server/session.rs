//! One client's connection: hello, control requests, and the QUIC streams that it opens for publishing and reading.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use tidelog_protocol::{
    BrokerState, CloseCode, Connection, Duplex, ErrorCode, Frame, FrameKind, Hello, PROTOCOL_VERSION, Request,
    RequestFrame, Response, ResponseFrame, ResponseResult, SendHalf, StatusDescription, TransportError, WireError,
    decode_json,
};
use tokio::sync::oneshot;

use crate::counters::ConnectionRefusal;
use crate::engine::Engine;
use crate::sequencer::{ReplySender, error_of};
use crate::server::allowance::{Allowance, QuicStreamPlace};
use crate::server::frames::{FrameReader, SessionEnd, write_failure, write_json};
use crate::server::{deliver, measure, publish};

/// Streams or producers in one page of a list.
const LIST_ITEMS_MAX: u32 = tidelog_protocol::LIST_ITEMS_MAX;

/// Serves a connection to its end. `admit` is called once its hello was accepted.
pub(crate) async fn serve(engine: Rc<Engine>, connection: Arc<dyn Connection>, admit: impl FnOnce()) {
    let allowance = Allowance::new(&engine.peers, &connection);
    let hello = say_hello(&engine, connection.as_ref(), &allowance);
    let refused = |refusal| engine.counters.connections_refused.add(refusal, 1);
    let control = match tokio::time::timeout(HELLO_TIMEOUT, hello).await {
        Ok(Ok(control)) => control,
        Ok(Err(end)) => {
            let is_busy = matches!(&end, SessionEnd::Failure(failure) if failure.error_code() == Some(ErrorCode::Busy));
            refused(if is_busy { ConnectionRefusal::Connections } else { ConnectionRefusal::Hello });
            // A close drops what has not left yet: the client closes once it has read why.
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, connection.closed()).await;
            let code = if is_busy { CloseCode::Busy } else { CloseCode::ProtocolError };
            return connection.close(code, "the hello was refused");
        }
        Err(_) => {
            refused(ConnectionRefusal::Silent);
            return connection.close(CloseCode::TimedOut, "no hello came in time");
        }
    };
    admit();
    allowance.admit();
    let _counted = engine.counters.connection();
    let opened = async {
        loop {
            // Before the next one is looked at: a QUIC stream that is not taken costs next to nothing.
            let place = allowance.quic_stream().await;
            // The connection's end shows here.
            let Ok(duplex) = connection.accept().await else { return };
            let (engine, connection) = (Rc::clone(&engine), Arc::clone(&connection));
            tokio::task::spawn_local(async move {
                // A session that waits for news neither reads nor writes, so it would not notice.
                tokio::select! {
                    biased;
                    () = serve_quic_stream(engine, duplex, place) => {}
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
        // Waiting for memory, it would not notice either.
        _ = connection.closed() => {}
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

async fn say_hello(
    engine: &Engine,
    connection: &dyn Connection,
    allowance: &Rc<Allowance>,
) -> Result<Control, SessionEnd> {
    let Duplex { mut send, receive } = connection.accept().await?;
    let mut reader = FrameReader::new(receive, engine, allowance);
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
    let connections_max = engine.peers.limits.connections_max;
    if engine.counters.connections.get() >= connections_max {
        let message = format!("there are {connections_max} connections, as many as the limit allows");
        return Err(SessionEnd::failure(ErrorCode::Busy, message));
    }
    let mut welcome = engine.welcome.clone();
    welcome.time_ms = engine.now().time.wall_ms;
    write_json(send, FrameKind::Welcome, &welcome).await?;
    Ok(())
}

/// Control requests of one connection that may wait for the disk together; beyond that the next one is not read.
const REQUESTS_WAITING_MAX: usize = 64;

async fn serve_control(engine: &Rc<Engine>, control: Control) {
    let Control { mut send, mut reader } = control;
    // Answers leave in the order of their requests.
    let mut waiting = VecDeque::new();
    let end = loop {
        let has_room = waiting.len() < REQUESTS_WAITING_MAX;
        let next = tokio::select! {
            // Whatever has arrived goes into the same group.
            biased;
            frame = reader.next(), if has_room => Next::Frame(frame),
            result = first(&mut waiting), if !waiting.is_empty() => Next::Answer(result),
        };
        let answered = match next {
            Next::Answer(answered) => answered,
            Next::Frame(Ok(Some(frame))) => match take_request(engine, &frame).await {
                Ok((id, Answer::Later(answer))) => {
                    waiting.push_back((id, answer));
                    continue;
                }
                Ok((id, Answer::LookUp(request))) => {
                    // What was asked for before is done by the time that this one is looked up.
                    if let Err(error) = write_answers(send.as_mut(), &mut waiting).await {
                        break SessionEnd::Transport(error);
                    }
                    (id, look_up(engine, request))
                }
                Ok((id, Answer::Refused(error))) => {
                    if let Err(error) = write_answers(send.as_mut(), &mut waiting).await {
                        break SessionEnd::Transport(error);
                    }
                    (id, ResponseResult::Error(error))
                }
                Err(end) => break end,
            },
            Next::Frame(Ok(None)) => match write_answers(send.as_mut(), &mut waiting).await {
                Ok(()) => return send.finish(),
                Err(error) => break SessionEnd::Transport(error),
            },
            Next::Frame(Err(end)) => break end,
        };
        if let Err(error) = write_answer(send.as_mut(), answered).await {
            break SessionEnd::Transport(error);
        }
    };
    write_failure(send.as_mut(), end).await;
}

/// A request's id, and its answer once it is there.
type Waiting = (u64, oneshot::Receiver<ResponseResult>);

enum Next {
    Frame(Result<Option<Frame>, SessionEnd>),
    Answer((u64, ResponseResult)),
}

enum Answer {
    /// Once the sequencer says so.
    Later(oneshot::Receiver<ResponseResult>),
    /// From what is durable, once all before it is answered.
    LookUp(Request),
    Refused(WireError),
}

/// Waits for the first of the answers that wait and takes it out. Cancel safe.
async fn first(waiting: &mut VecDeque<Waiting>) -> (u64, ResponseResult) {
    let Some((id, answer)) = waiting.front_mut() else { return std::future::pending().await };
    // Dropped unanswered: the log was poisoned meanwhile, and what became of the request is not known.
    let answered = (*id, answer.await.unwrap_or_else(|_| error_of(ErrorCode::Poisoned)));
    waiting.pop_front();
    answered
}

async fn write_answers(send: &mut dyn SendHalf, waiting: &mut VecDeque<Waiting>) -> Result<(), TransportError> {
    while !waiting.is_empty() {
        let answered = first(waiting).await;
        write_answer(send, answered).await?;
    }
    Ok(())
}

async fn write_answer(send: &mut dyn SendHalf, (id, result): (u64, ResponseResult)) -> Result<(), TransportError> {
    write_json(send, FrameKind::Response, &ResponseFrame { id, result }).await
}

async fn take_request(engine: &Engine, frame: &Frame) -> Result<(u64, Answer), SessionEnd> {
    if frame.kind != FrameKind::Request {
        let message = format!("a frame {:?} has no place here", frame.kind);
        return Err(SessionEnd::failure(ErrorCode::Malformed, message));
    }
    match RequestFrame::decode(&frame.body) {
        Ok(RequestFrame { id, request }) => Ok((id, answer(engine, request).await)),
        Err(refused) => match refused.id {
            Some(id) => Ok((id, Answer::Refused(refused.error))),
            None => Err(SessionEnd::Failure(refused.error)),
        },
    }
}

/// Puts a request that changes something to the sequencer, and one that takes long to whom it concerns; all others are
/// looked up.
async fn answer(engine: &Engine, request: Request) -> Answer {
    match request {
        Request::CreateStream { name, if_not_exists, settings } => {
            decide(engine, |to| {
                let now = engine.now();
                engine.sequencer.borrow_mut().create_stream(&name, if_not_exists, &settings, now, to)
            })
            .await
        }
        Request::RemoveStream { stream } => {
            decide(engine, |to| engine.sequencer.borrow_mut().remove_stream(stream, engine.now(), to)).await
        }
        Request::OpenProducer { name, found, attempt } => {
            decide(engine, |to| engine.sequencer.borrow_mut().open_producer(&name, found, attempt, engine.now(), to))
                .await
        }
        Request::MeasureSync { append_bytes, appends } => Answer::Later(engine.syncs.measure(append_bytes, appends)),
        request => Answer::LookUp(request),
    }
}

/// Answers a request from what is durable. All requests stand here or in [`answer`]; a new one without an arm does not
/// compile.
fn look_up(engine: &Engine, request: Request) -> ResponseResult {
    match request {
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
        Request::CreateStream { .. }
        | Request::RemoveStream { .. }
        | Request::OpenProducer { .. }
        | Request::MeasureSync { .. } => unreachable!("it is not looked up"),
        Request::AttachProducer { .. }
        | Request::Subscribe { .. }
        | Request::Echo
        | Request::Sink
        | Request::Source { .. } => {
            let message = "this request opens a QUIC stream of its own; it has no place on the control one";
            ResponseResult::Error(WireError::new(ErrorCode::Malformed, message))
        }
    }
}

/// Puts a request to the sequencer, again when there is room if there was none.
async fn decide(engine: &Engine, mut put: impl FnMut(ReplySender) -> Result<(), ReplySender>) -> Answer {
    let (mut to, answer) = oneshot::channel();
    loop {
        let room = engine.room();
        let put = put(to);
        engine.touched();
        match put {
            Ok(()) => return Answer::Later(answer),
            Err(back) => to = back,
        }
        room.await;
    }
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
async fn serve_quic_stream(engine: Rc<Engine>, duplex: Duplex, place: QuicStreamPlace) {
    let _counted = engine.counters.hold(|counters| &counters.quic_streams);
    let Duplex { mut send, receive } = duplex;
    let allowance = place.allowance();
    let mut reader = FrameReader::new(receive, &engine, allowance);
    let end = match first_request(&mut reader).await {
        Ok(RequestFrame {
            id,
            request: Request::AttachProducer { producer, epoch, attempt, attachment, accepted },
        }) => {
            let attach = publish::Attach { id, producer, epoch, attempt, attachment, accepted };
            publish::serve(&engine, send.as_mut(), &mut reader, allowance, attach).await
        }
        Ok(RequestFrame { id, request: Request::Subscribe { stream, from, follow } }) => {
            let subscribe = deliver::Subscribe { id, stream, from, follow };
            deliver::serve(&engine, send.as_mut(), &mut reader, allowance, subscribe).await
        }
        Ok(RequestFrame { id, request: request @ (Request::Echo | Request::Sink | Request::Source { .. }) }) => {
            measure::serve(send.as_mut(), &mut reader, allowance, id, request).await
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
