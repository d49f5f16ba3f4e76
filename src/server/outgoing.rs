//! What a subscription writes next: small pieces copied together, large batches as they are; and how most of it is given
//! back when the consumer takes nothing, so that one who has stopped reading holds almost no memory.

use std::future::poll_fn;
use std::task::{Poll, ready};

use bytes::{Bytes, BytesMut};
use tidelog_protocol::{DeliverHeader, SendHalf, TransportError, encode_deliver_header};

use crate::budget::Share;
use crate::server::allowance::Allowance;

/// Smaller batches are copied together: few large writes are what matters most to QUIC, and a slice would pin the whole
/// buffer that it stands in.
const COPY_BYTES_MAX: usize = 64 * 1_024;
/// A consumer that takes nothing holds this many bytes, so that it shows when it reads on.
const KEPT_BYTES: usize = 4 * 1_024;

/// What is to be written next.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    chunks: Vec<Bytes>,
    small: BytesMut,
    /// Bytes put in since the last write, frames and all.
    len: usize,
    frames: Vec<DeliverFrame>,
    /// The memory that it takes.
    share: Option<Share>,
}

/// Where a Deliver frame stands among the bytes.
#[derive(Debug, Clone, Copy)]
struct DeliverFrame {
    start: usize,
    end: usize,
    /// The next offset before it.
    offset: u64,
    /// Leading bytes of it that were left out.
    skip: usize,
    records: u64,
}

/// Where to go on after a part was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GoOn {
    /// The next offset to deliver; none if all that was put in stays.
    pub(super) offset: Option<u64>,
    /// Leading bytes of its frame that the consumer has or will have.
    pub(super) skip: usize,
}

impl Outgoing {
    /// Bytes put in.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Memory for what is put in, until it is written or given back.
    pub(super) fn hold(&mut self, share: Share) {
        match &mut self.share {
            Some(held) => held.merge(share),
            None => self.share = Some(share),
        }
    }

    /// The memory taken beyond what is put in goes back.
    pub(super) fn settle(&mut self) {
        let len = u32::try_from(self.len).unwrap_or(u32::MAX);
        if let Some(share) = &mut self.share {
            share.shrink_to(len);
        }
    }

    /// A small frame, encoded by `encode`.
    pub(super) fn put_small(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        let before = self.small.len();
        encode(&mut self.small);
        self.len += self.small.len() - before;
    }

    /// A batch. `skip` bytes of its frame are left out; `offset` is the next one before it, and `records` counts those
    /// that are new to the consumer.
    pub(super) fn put_batch(&mut self, header: &DeliverHeader, payload: Bytes, skip: usize, offset: u64, records: u64) {
        let start = self.len;
        let head = encode_deliver_header(header, payload.len());
        let head_left = head.get(skip..).unwrap_or_default();
        let payload = payload.slice(skip.saturating_sub(head.len()).min(payload.len())..);
        self.small.extend_from_slice(head_left);
        self.len += head_left.len() + payload.len();
        if payload.len() < COPY_BYTES_MAX {
            self.small.extend_from_slice(&payload);
        } else {
            self.end_small();
            self.chunks.push(payload);
        }
        self.frames.push(DeliverFrame { start, end: self.len, offset, skip, records });
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push(self.small.split().freeze());
        }
    }

    /// Writes everything; how many records went with it. Cancel safe: it goes on where it was.
    pub(super) async fn write(
        &mut self,
        send: &mut dyn SendHalf,
        allowance: &Allowance,
    ) -> Result<u64, TransportError> {
        self.end_small();
        let chunks = &mut self.chunks;
        // Where the chunks start that are not written yet.
        let mut start = 0;
        poll_fn(|cx| {
            loop {
                let left = chunks.get_mut(start..).unwrap_or_default();
                let written = left.iter().take_while(|chunk| chunk.is_empty()).count();
                start += written;
                let Some(left) = left.get_mut(written..).filter(|left| !left.is_empty()) else {
                    return Poll::Ready(Ok(()));
                };
                match ready!(send.poll_write(cx, left))? {
                    // Neither progress nor a wake-up to come: going on would spin.
                    0 => return Poll::Ready(Err(TransportError::Lost("the transport takes no bytes".to_owned()))),
                    bytes => allowance.sent(bytes),
                }
            }
        })
        .await?;
        let records = self.frames.iter().map(|frame| frame.records).sum();
        self.clear();
        Ok(records)
    }

    fn clear(&mut self) {
        self.chunks.clear();
        self.frames.clear();
        self.len = 0;
        self.share = None;
    }

    /// Gives back all but a few kilobytes of what is not written; what stays is to be written before anything else. Also
    /// how many records are written or stay whole.
    pub(super) fn give_back(&mut self) -> (GoOn, u64) {
        self.end_small();
        let left: usize = self.chunks.iter().map(Bytes::len).sum();
        let written = self.len - left;
        let wanted = (written + KEPT_BYTES).min(self.len);
        // Only within a Deliver frame can a cut be mended later: the log holds its bytes.
        let cut = self.frames.iter().find(|frame| wanted < frame.end);
        let (keep_to, go_on) = match cut {
            Some(frame) if wanted > frame.start => {
                (wanted, GoOn { offset: Some(frame.offset), skip: frame.skip + wanted - frame.start })
            }
            Some(frame) => (frame.start, GoOn { offset: Some(frame.offset), skip: frame.skip }),
            None => (self.len, GoOn { offset: None, skip: 0 }),
        };
        let records = self.frames.iter().take_while(|frame| frame.end <= keep_to).map(|frame| frame.records).sum();
        let mut kept = BytesMut::with_capacity(keep_to - written);
        for chunk in &self.chunks {
            let room = keep_to - written - kept.len();
            kept.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
        }
        self.clear();
        self.len = kept.len();
        self.chunks.push(kept.freeze());
        (go_on, records)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Context;

    use tidelog_protocol::{
        BoxFuture, CloseCode, Connection, DELIVER_HEADER_LEN, Duplex, FRAME_HEADER_LEN, Offset, ProducerId,
    };

    use super::*;
    use crate::budget::Budget;
    use crate::config::{BrokerConfig, CheckedConfig};
    use crate::counters::Counters;
    use crate::server::peers::Peers;

    const HEAD_LEN: usize = FRAME_HEADER_LEN + DELIVER_HEADER_LEN;

    struct NoConnection;

    impl Connection for NoConnection {
        fn open(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
            Box::pin(std::future::pending())
        }

        fn accept(&self) -> BoxFuture<'_, Result<Duplex, TransportError>> {
            Box::pin(std::future::pending())
        }

        fn close(&self, _code: CloseCode, _reason: &str) {}

        fn closed(&self) -> BoxFuture<'_, TransportError> {
            Box::pin(std::future::pending())
        }

        fn remote(&self) -> String {
            String::new()
        }
    }

    /// Takes as many bytes as it has room for and then none.
    struct Narrow {
        room: usize,
        taken: Vec<u8>,
    }

    impl SendHalf for Narrow {
        fn poll_write(&mut self, _: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, TransportError>> {
            let before = self.taken.len();
            for chunk in chunks {
                let part = chunk.split_to(chunk.len().min(self.room));
                self.room -= part.len();
                self.taken.extend_from_slice(&part);
            }
            if self.taken.len() == before { Poll::Pending } else { Poll::Ready(Ok(self.taken.len() - before)) }
        }

        fn finish(&mut self) {}

        fn reset(&mut self, _code: u32) {}
    }

    fn header(base_offset: u64) -> DeliverHeader {
        DeliverHeader { base_offset: Offset::new(base_offset), time_ms: 7, producer: ProducerId::new(8), skip: 0 }
    }

    fn payload(number: usize, len: usize) -> Bytes {
        (0..len).map(|at| (at * 7 + number) as u8).collect::<Vec<_>>().into()
    }

    /// Puts batches of these lengths, one record each, from `from` on; the first one without its leading `skip` bytes.
    fn fill(outgoing: &mut Outgoing, lens: &[usize], from: usize, mut skip: usize) {
        for (number, len) in lens.iter().enumerate().skip(from) {
            if skip == 0 {
                outgoing.put_small(|out| out.extend_from_slice(b"name"));
            }
            let offset = number as u64;
            outgoing.put_batch(&header(offset), payload(number, *len), std::mem::take(&mut skip), offset, 1);
        }
    }

    /// What a consumer gets that takes `step` bytes and then nothing until most is given back, again and again.
    fn delivered(lens: &[usize], step: usize) -> (Vec<u8>, u64) {
        let config = CheckedConfig::try_from(BrokerConfig::in_memory()).unwrap();
        let peers = Peers::new(&config, &Arc::new(Counters::new()));
        let connection: Arc<dyn Connection> = Arc::new(NoConnection);
        let allowance = Allowance::new(&peers, &connection);
        let mut send = Narrow { room: 0, taken: Vec::new() };
        let (mut outgoing, mut records) = (Outgoing::default(), 0);
        let mut go_on = GoOn { offset: Some(0), skip: 0 };
        while let GoOn { offset: Some(offset), skip } = go_on {
            fill(&mut outgoing, lens, offset as usize, skip);
            send.room = step;
            if let Some(written) = write_once(&mut outgoing, &mut send, &allowance) {
                return (send.taken, records + written);
            }
            let (next, whole) = outgoing.give_back();
            assert!(outgoing.len() <= KEPT_BYTES + HEAD_LEN, "{}", outgoing.len());
            // What stays is written before anything else.
            send.room = outgoing.len();
            assert_eq!(write_once(&mut outgoing, &mut send, &allowance), Some(0));
            (go_on, records) = (next, records + whole);
        }
        (send.taken, records)
    }

    fn write_once(outgoing: &mut Outgoing, send: &mut Narrow, allowance: &Allowance) -> Option<u64> {
        let mut write = std::pin::pin!(outgoing.write(send, allowance));
        match write.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(written) => Some(written.unwrap()),
            Poll::Pending => None,
        }
    }

    /// Without the names, which may be told more than once.
    fn frames_only(bytes: &[u8]) -> Vec<u8> {
        let mut frames = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = rest.strip_prefix(b"name").unwrap_or(rest);
            let len = FRAME_HEADER_LEN + u32::from_le_bytes(*rest.first_chunk().unwrap()) as usize;
            frames.extend_from_slice(&rest[..len]);
            rest = &rest[len..];
        }
        frames
    }

    #[test]
    fn what_was_given_back_is_delivered_later_byte_for_byte_wherever_the_consumer_stopped() {
        let lens = [300, 10, 5_000, 70_000, 1, 9_000, 200_000, 40];
        let whole: Vec<u8> = lens
            .iter()
            .enumerate()
            .flat_map(|(number, len)| {
                let head = encode_deliver_header(&header(number as u64), *len);
                [&head[..], &payload(number, *len)].concat()
            })
            .collect();
        for step in [1, 13, 100, 339, 340, 341, 4_096, 50_000, 75_123, 1 << 20] {
            let (taken, records) = delivered(&lens, step);
            assert_eq!(frames_only(&taken), whole, "steps of {step} bytes");
            assert_eq!(records, lens.len() as u64, "steps of {step} bytes");
        }
    }

    #[test]
    fn memory_is_returned_with_what_is_given_back() {
        let counters = Arc::new(Counters::new());
        let budget = Budget::new(1 << 20, Arc::clone(&counters));
        let mut outgoing = Outgoing::default();
        outgoing.hold(budget.try_take(500_000).unwrap());
        fill(&mut outgoing, &[100_000], 0, 0);
        outgoing.settle();
        assert_eq!(counters.memory_used_bytes.get(), outgoing.len() as u64);
        outgoing.give_back();
        assert_eq!(counters.memory_used_bytes.get(), 0);
    }
}
