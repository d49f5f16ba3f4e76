//! A TCP connection with a buffer on each side, for the protocols that are spoken by hand.

use std::net::SocketAddr;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Outcome;

/// Room that a read is given at least.
const READ_BYTES: usize = 128 * 1024;

pub(crate) struct Wire {
    stream: TcpStream,
    output: Vec<u8>,
    /// Bytes of `output` that are written already.
    written: usize,
    input: BytesMut,
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, output: Vec::with_capacity(READ_BYTES), written: 0, input: BytesMut::new() })
    }

    /// What is to be sent with the next [`flush`](Self::flush).
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Sends what was put into the output. Cancel safe: another call goes on where this one stopped.
    pub(crate) async fn flush(&mut self) -> Outcome<()> {
        while let Some(rest) = self.output.get(self.written..).filter(|rest| !rest.is_empty()) {
            self.written += self.stream.write(rest).await?;
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }

    /// What was received and not consumed.
    pub(crate) fn input(&self) -> &[u8] {
        &self.input
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.input.advance(bytes);
    }

    /// Waits for more input. Cancel safe.
    pub(crate) async fn fill(&mut self) -> Outcome<()> {
        self.input.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err("the server closed the connection".into()),
            _ => Ok(()),
        }
    }

    /// The next line without its end, consumed.
    pub(crate) async fn line(&mut self) -> Outcome<String> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.input) {
                let line = self.input.split_to(end + 1);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.fill().await?;
        }
    }

    /// Exactly so many bytes, consumed.
    pub(crate) async fn exactly(&mut self, bytes: usize) -> Outcome<BytesMut> {
        while self.input.len() < bytes {
            self.fill().await?;
        }
        Ok(self.input.split_to(bytes))
    }
}
