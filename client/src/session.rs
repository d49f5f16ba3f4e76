//! The task behind a producer: it owns the QUIC stream, sends what is in the window, applies the answers, and after a
//! loss attaches again and sends the window again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tidelog_protocol::{
    AttemptId, Epoch, ErrorCode, FRAME_HEADER_LEN, Frame, FrameKind, ProducerId, Request, Response, decode_accepted,
    decode_answers, encode_frame_header, write_all,
};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::channel::{Channel, failure, unexpected};
use crate::connection::{Client, wrong_answer};
use crate::error::Error;
use crate::retry::Backoff;
use crate::window::{Ack, Settled, Window};

/// Bytes gathered for one write.
const WRITE_BYTES: usize = 512 * 1024;

/// Frames below this are copied together: quinn keeps each slice of a write as a chunk of its own, and many small
/// chunks cost more than the copy.
const COPY_BYTES_MAX: usize = 16 * 1024;

/// They are copied into blocks of this size: larger ones an allocator takes from the system and gives back each time, and
/// every page of them is zeroed first.
const COPY_BLOCK_BYTES: usize = 64 * 1024;

/// What a producer's handles and its task share.
pub(crate) struct Shared {
    window: Mutex<Window>,
    /// Answers came, or an end: for everybody who waits for room, flushes or receipts.
    pub(crate) changed: Notify,
    /// There may be something to send: for the task.
    pub(crate) work: Notify,
    stop: Notify,
}

impl Shared {
    pub(crate) fn new(window: Window) -> Self {
        Self { window: Mutex::new(window), changed: Notify::new(), work: Notify::new(), stop: Notify::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Window> {
        // Whoever panicked while holding it has broken the window's bookkeeping at worst for its own producer; the
        // broker checks every batch and sequence that comes out of it.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the producer for everybody who waits or comes later.
    pub(crate) fn fail(&self, error: Error) {
        self.lock().fail(error);
        self.changed.notify_waiters();
    }

    /// Ends the task.
    pub(crate) fn stop(&self) {
        self.stop.notify_one();
    }
}

/// Why an attachment ended.
enum Ended {
    /// The window is sent again over another one.
    ForNow(Error),
    /// The producer can't go on.
    ForGood(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        if error.is_retryable() { Self::ForNow(error) } else { Self::ForGood(error) }
    }
}

/// One opened producer, seen from its task.
pub(crate) struct Session {
    client: Client,
    shared: Arc<Shared>,
    producer: ProducerId,
    epoch: Epoch,
    attempt: AttemptId,
    /// Attachments of this session so far.
    attachments: u64,
    /// Since when nothing has moved although something waits; `None` while nothing waits.
    stalled_since: Option<Instant>,
    backoff: Backoff,
    /// What went wrong last, until something goes right.
    cause: Option<Error>,
}

impl Session {
    pub(crate) fn new(
        client: Client,
        shared: Arc<Shared>,
        producer: ProducerId,
        epoch: Epoch,
        attempt: AttemptId,
    ) -> Self {
        Self {
            client,
            shared,
            producer,
            epoch,
            attempt,
            attachments: 0,
            stalled_since: None,
            backoff: Backoff::default(),
            cause: None,
        }
    }

    /// Runs until the producer is stopped or can't go on.
    pub(crate) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            biased;
            () = shared.stop.notified() => shared.fail(Error::Closed),
            error = self.drive() => {
                tracing::debug!(%error, "producer ended");
                shared.fail(error);
            }
        }
    }

    /// Attaches and pumps, again and again; gives the error that can't be ridden out.
    async fn drive(&mut self) -> Error {
        loop {
            let ended = self.attach_and_pump().await;
            self.shared.changed.notify_waiters();
            let error = match ended {
                Ended::ForNow(error) => error,
                Ended::ForGood(error) => return error,
            };
            tracing::debug!(%error, "producer interrupted");
            self.note_cause(error);
            self.note_waiting();
            if let Some(deadline) = self.deadline() {
                let next = Instant::now() + self.backoff.next_delay(self.client.jitter());
                if next >= deadline {
                    return self.give_up();
                }
                sleep_until(next).await;
            } else {
                // Nothing to send: the broker is reached again when there is.
                sleep(self.backoff.next_delay(self.client.jitter())).await;
                while self.shared.lock().is_empty() {
                    self.shared.work.notified().await;
                }
                self.note_waiting();
            }
        }
    }

    async fn attach_and_pump(&mut self) -> Ended {
        let deadline = self.deadline().unwrap_or_else(|| Instant::now() + self.client.timeout());
        match timeout_at(deadline, self.attach()).await {
            Ok(Ok(channel)) => self.pump(channel).await,
            Ok(Err(error)) => error.into(),
            Err(_) => self.client.timed_out("attaching the producer", None).into(),
        }
    }

    /// The end after the last try. A timeout within the timeout says nothing new; what it was caused by does.
    fn give_up(&mut self) -> Error {
        let cause = self.cause.take();
        self.client.timed_out("publishing", cause)
    }

    /// Remembers what went wrong last, until something goes right.
    fn note_cause(&mut self, error: Error) {
        match error {
            Error::TimedOut { cause: Some(cause), .. } => self.cause = Some(*cause),
            Error::TimedOut { cause: None, .. } => {}
            other => self.cause = Some(other),
        }
    }

    /// Opens the QUIC stream for batches and makes sure that the broker still has what it acknowledged.
    async fn attach(&mut self) -> Result<Channel, Error> {
        let link = self.client.link().await?;
        self.attachments += 1;
        let request = Request::AttachProducer {
            producer: self.producer,
            epoch: self.epoch,
            attempt: self.attempt,
            attachment: self.attachments,
            accepted: self.shared.lock().ack() == Ack::Accepted,
        };
        let (channel, response) = link.open(request).await?;
        if response != Response::Attached {
            return Err(wrong_answer("attach_producer", &response));
        }
        self.shared.lock().start_anew();
        if self.producer != ProducerId::ANONYMOUS {
            self.check_streams().await?;
        }
        Ok(channel)
    }

    /// Asked after attaching: from then on nothing of an earlier attachment is stored any more.
    async fn check_streams(&self) -> Result<(), Error> {
        let streams: Vec<_> = {
            let window = self.shared.lock();
            let alive = window.streams().filter(|(_, stream)| stream.failure.is_none());
            alive.map(|(slot, stream)| (slot, stream.id)).collect()
        };
        for (slot, stream) in streams {
            match self.client.producer_position(self.producer, stream).await {
                Ok(position) => self.shared.lock().check_last(slot, position)?,
                Err(error) if matches!(error.code(), Some(ErrorCode::NotFound | ErrorCode::StreamGone)) => {
                    self.shared.lock().fail_stream(slot, error);
                    self.shared.changed.notify_waiters();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends and settles until something is wrong.
    async fn pump(&mut self, mut channel: Channel) -> Ended {
        let shared = Arc::clone(&self.shared);
        let mut unwritten = Vec::new();
        let patience = sleep_until(self.deadline().unwrap_or_else(|| Instant::now() + self.client.timeout()));
        tokio::pin!(patience);
        loop {
            let gathers = unwritten.is_empty() && self.shared.lock().gathers();
            if unwritten.is_empty() && !gathers {
                self.fill(&mut unwritten);
            }
            let idle = unwritten.is_empty();
            tokio::select! {
                biased;
                written = write_all(channel.outgoing.as_mut(), &mut unwritten), if !idle => {
                    if let Err(error) = written {
                        return self.last_words(&mut channel, error.into()).await;
                    }
                    unwritten.clear();
                }
                frame = channel.incoming.next() => {
                    let applied = match frame {
                        Ok(frame) => self.apply_all(frame, &mut channel),
                        Err(error) => Err(error.into()),
                    };
                    if let Err(ended) = applied {
                        return ended;
                    }
                }
                () = shared.work.notified(), if idle && !gathers => {}
                () = yield_now(), if gathers => {}
                () = &mut patience, if self.stalled_since.is_some() => match self.deadline() {
                    Some(deadline) if Instant::now() >= deadline => {
                        return self.client.timed_out("publishing", None).into();
                    }
                    Some(deadline) => patience.as_mut().reset(deadline),
                    None => {}
                },
            }
        }
    }

    /// A broker that gives up a QUIC stream stops reading it, but says why on the other half.
    async fn last_words(&mut self, channel: &mut Channel, error: Error) -> Ended {
        /// Why is only worth knowing if it is told soon.
        const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(500);
        let listen = async {
            loop {
                let told = match channel.incoming.next().await {
                    Ok(frame) => self.apply(&frame),
                    Err(reason) => Err(reason.into()),
                };
                if let Err(reason) = told {
                    return reason;
                }
            }
        };
        match timeout_at(Instant::now() + LAST_WORDS_TIMEOUT, listen).await {
            Ok(Ended::ForNow(Error::Lost { .. })) | Err(_) => error.into(),
            Ok(reason) => reason,
        }
    }

    /// Takes what is due out of the window, as frames.
    fn fill(&mut self, unwritten: &mut Vec<Bytes>) {
        let mut batches = Vec::new();
        {
            let mut window = self.shared.lock();
            let mut total = 0;
            while total < WRITE_BYTES
                && let Some(batch) = window.next_unsent()
            {
                total += batch.len();
                batches.push(batch);
            }
        }
        if batches.is_empty() {
            return;
        }
        self.stalled_since.get_or_insert_with(Instant::now);
        let copied_len = |batch: &Bytes| match batch.len() < COPY_BYTES_MAX {
            true => FRAME_HEADER_LEN + batch.len(),
            false => FRAME_HEADER_LEN,
        };
        let mut left: usize = batches.iter().map(copied_len).sum();
        let mut copied = BytesMut::new();
        for batch in batches {
            let len = copied_len(&batch);
            if copied.capacity() - copied.len() < len {
                push_filled(unwritten, &mut copied);
                copied = BytesMut::with_capacity(left.min(COPY_BLOCK_BYTES));
            }
            left -= len;
            copied.put_slice(&encode_frame_header(FrameKind::Publish, batch.len()));
            if len > FRAME_HEADER_LEN {
                copied.put_slice(&batch);
            } else {
                push_filled(unwritten, &mut copied);
                unwritten.push(batch);
            }
        }
        push_filled(unwritten, &mut copied);
    }

    /// Applies a frame and all that have come with it, then lets everybody know.
    fn apply_all(&mut self, frame: Frame, channel: &mut Channel) -> Result<(), Ended> {
        let mut next = Some(frame);
        let mut applied = Ok(());
        while let (Some(frame), Ok(())) = (next.take(), &applied) {
            applied = self.apply(&frame);
            if applied.is_ok() {
                next = channel.incoming.buffered()?;
            }
        }
        self.shared.changed.notify_waiters();
        applied
    }

    fn apply(&mut self, frame: &Frame) -> Result<(), Ended> {
        match frame.kind {
            FrameKind::Answers => {
                let (up_to, answers) = decode_answers(&frame.body).map_err(Error::from)?;
                let (settled, moved, empty) = {
                    let mut window = self.shared.lock();
                    let before = window.answered;
                    let settled = window.settle(up_to, &answers);
                    (settled, window.answered > before, window.is_empty())
                };
                if moved {
                    self.backoff.reset();
                    self.cause = None;
                    self.stalled_since = (!empty).then(Instant::now);
                }
                match settled? {
                    Settled::Final => Ok(()),
                    Settled::SendAgain(error) => Err(Ended::ForNow(error)),
                }
            }
            FrameKind::Accepted => {
                let up_to = decode_accepted(&frame.body).map_err(Error::from)?;
                self.shared.lock().accept(up_to)?;
                Ok(())
            }
            FrameKind::Failure => Err(failure(frame).into()),
            other => Err(unexpected(other).into()),
        }
    }

    /// Starts or ends the count of time without progress, depending on whether anything waits.
    fn note_waiting(&mut self) {
        if self.shared.lock().is_empty() {
            self.stalled_since = None;
        } else {
            self.stalled_since.get_or_insert_with(Instant::now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.stalled_since.map(|since| since + self.client.timeout())
    }
}

fn push_filled(unwritten: &mut Vec<Bytes>, copied: &mut BytesMut) {
    if !copied.is_empty() {
        unwritten.push(copied.split().freeze());
    }
}
