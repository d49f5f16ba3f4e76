//! Datagrams that are lost or late, for the test kit: below QUIC, so that it deals with them as it does on a network.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};

/// What the network is like at this moment.
pub(crate) trait Weather: fmt::Debug + Send + Sync {
    /// Nothing arrives, and nothing that leaves gets anywhere.
    fn is_cut_off(&self) -> bool;

    /// So much later the broker's datagrams leave.
    fn delay(&self) -> Duration;
}

/// `socket` in this weather. Within the runtime that is to send what is late.
pub(super) fn over(socket: Arc<dyn AsyncUdpSocket>, weather: Arc<dyn Weather>) -> Arc<dyn AsyncUdpSocket> {
    let (late, due) = unbounded_channel();
    tokio::spawn(send_when_due(Arc::clone(&socket), Arc::clone(&weather), due));
    Arc::new(WeatherSocket { socket, weather, late })
}

#[derive(Debug)]
struct WeatherSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    weather: Arc<dyn Weather>,
    /// Bounded by what QUIC sends unacknowledged.
    late: UnboundedSender<Late>,
}

/// Datagrams on their way, and when they leave.
#[derive(Debug)]
struct Late {
    due: Instant,
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    contents: Vec<u8>,
    segment_size: Option<usize>,
    src_ip: Option<IpAddr>,
}

async fn send_when_due(
    socket: Arc<dyn AsyncUdpSocket>,
    weather: Arc<dyn Weather>,
    mut arriving: UnboundedReceiver<Late>,
) {
    // By the time they are due, then in the order in which they came: one that is very late holds up no other.
    let mut waiting: BTreeMap<(Instant, u64), Late> = BTreeMap::new();
    let mut number = 0;
    loop {
        let due = waiting.first_key_value().map(|((due, _), _)| *due);
        let late = tokio::select! {
            biased;
            late = arriving.recv() => late,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if let Some((_, late)) = waiting.pop_first() {
                    send(socket.as_ref(), weather.as_ref(), &late);
                }
                continue;
            }
        };
        // Nobody sends any more.
        let Some(late) = late else { return };
        number += 1;
        waiting.insert((late.due, number), late);
    }
}

fn send(socket: &dyn AsyncUdpSocket, weather: &dyn Weather, late: &Late) {
    if weather.is_cut_off() {
        return;
    }
    let Late { destination, ecn, contents, segment_size, src_ip, .. } = late;
    let transmit =
        Transmit { destination: *destination, ecn: *ecn, contents, segment_size: *segment_size, src_ip: *src_ip };
    // What can't be sent now is lost, as it may be on any network.
    let _ = socket.try_send(&transmit);
}

impl AsyncUdpSocket for WeatherSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.weather.is_cut_off() {
            return Ok(());
        }
        let delay = self.weather.delay();
        if delay.is_zero() {
            return self.socket.try_send(transmit);
        }
        let late = Late {
            due: Instant::now() + delay,
            destination: transmit.destination,
            ecn: transmit.ecn,
            contents: transmit.contents.to_vec(),
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        // Nobody sends any more: the runtime ends.
        let _ = self.late.send(late);
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = ready!(self.socket.poll_recv(context, buffers, meta));
            if received.is_err() || !self.weather.is_cut_off() {
                return Poll::Ready(received);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
