//! One QUIC stream as the broker's side sees it: frames in, frames out.

use bytes::{Bytes, BytesMut};
use tidelog_protocol::{
    Duplex, Frame, FrameDecoder, FrameKind, Limits, Response, ResponseFrame, ResponseResult, WireError,
    encode_json_frame, read, write_all,
};

pub struct Channel {
    pub duplex: Duplex,
    decoder: FrameDecoder,
}

impl Channel {
    pub fn new(duplex: Duplex) -> Self {
        Self { duplex, decoder: FrameDecoder::new(Limits::default()) }
    }

    /// `None` when the client is gone.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("the client sends whole frames") {
                return Some(frame);
            }
            let chunk = read(self.duplex.receive.as_mut(), 64 << 10).await.ok()??;
            self.decoder.push(&chunk);
        }
    }

    pub async fn send(&mut self, bytes: Bytes) -> Option<()> {
        write_all(self.duplex.send.as_mut(), &mut [bytes]).await.ok()
    }

    pub async fn send_with(&mut self, encode: impl FnOnce(&mut BytesMut)) -> Option<()> {
        let mut bytes = BytesMut::new();
        encode(&mut bytes);
        self.send(bytes.freeze()).await
    }

    pub async fn send_json(&mut self, kind: FrameKind, body: &impl serde::Serialize) -> Option<()> {
        self.send_with(|out| encode_json_frame(kind, body, out).unwrap()).await
    }

    pub async fn respond(&mut self, id: u64, result: Result<Response, WireError>) -> Option<()> {
        let result = match result {
            Ok(response) => ResponseResult::Ok(response),
            Err(error) => ResponseResult::Error(error),
        };
        self.send_json(FrameKind::Response, &ResponseFrame { id, result }).await
    }
}
