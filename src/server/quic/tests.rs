//! QUIC against a client of raw quinn: what a stranger gets, and how connections end.

use std::future::poll_fn;

use rustls::pki_types::CertificateDer;
use tidelog_protocol::{read, write_all};

use super::*;
use crate::config::BrokerConfig;
use crate::counters::ConnectionRefusal;
use crate::server::tls::Identity;

const ANY_PORT: &str = "127.0.0.1:0";

fn listener(identity: &Identity, change: impl FnOnce(&mut BrokerConfig)) -> Listener {
    let mut config = BrokerConfig::in_memory();
    change(&mut config);
    let config = CheckedConfig::try_from(config).unwrap();
    let socket = open_socket(config.listen).unwrap();
    Listener::start(socket, identity.server_config().unwrap(), identity.reset_key(), &config).unwrap()
}

/// A client that trusts `certificate` as an authority and asks for the protocols given.
fn client(certificate: &CertificateDer<'static>, protocols: &[&[u8]]) -> Endpoint {
    let mut authorities = rustls::RootCertStore::empty();
    authorities.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(authorities)
        .with_no_client_auth();
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let socket = UdpSocket::bind(ANY_PORT).unwrap();
    let mut endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    endpoint
}

async fn connect(
    listener: &Listener,
    protocols: &[&[u8]],
    identity: &Identity,
) -> (Result<quinn::Connection, ConnectionError>, Result<Arc<QuicConnection>, TransportError>) {
    let endpoint = client(identity.certificate().unwrap(), protocols);
    let connecting = endpoint.connect(listener.local_addr(), "localhost").unwrap();
    let serving = async { listener.accept().await.unwrap().handshake().await };
    tokio::join!(connecting, serving)
}

/// Polls `future` once.
async fn is_ready<F: Future + Unpin>(future: &mut F) -> bool {
    poll_fn(|cx| Poll::Ready(pin!(&mut *future).poll(cx).is_ready())).await
}

#[tokio::test]
async fn bytes_go_both_ways_and_ends_are_told() {
    let identity = Identity::load_or_make(None).unwrap();
    let listener = listener(&identity, |_| {});
    let (client, broker) = connect(&listener, &[ALPN], &identity).await;
    let (client, broker) = (client.unwrap(), broker.unwrap());
    let (mut send, mut receive) = client.open_bi().await.unwrap();
    send.write_all(b"hello").await.unwrap();
    send.finish().unwrap();

    let mut duplex = broker.accept().await.unwrap();
    let hello = read(&mut *duplex.receive, 1_024).await.unwrap().unwrap();
    assert_eq!(hello, &b"hello"[..]);
    assert!(read(&mut *duplex.receive, 1_024).await.unwrap().is_none());
    let mut chunks = [Bytes::new(), Bytes::from_static(b"wel"), Bytes::from_static(b"come")];
    write_all(&mut *duplex.send, &mut chunks).await.unwrap();
    duplex.send.finish();
    assert_eq!(receive.read_to_end(1_024).await.unwrap(), b"welcome");
    assert!(broker.remote().starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn a_reset_and_a_stop_carry_their_codes() {
    let identity = Identity::load_or_make(None).unwrap();
    let listener = listener(&identity, |_| {});
    let (client, broker) = connect(&listener, &[ALPN], &identity).await;
    let (client, broker) = (client.unwrap(), broker.unwrap());
    let (mut send, mut receive) = client.open_bi().await.unwrap();
    send.write_all(b"x").await.unwrap();
    let mut duplex = broker.accept().await.unwrap();
    read(&mut *duplex.receive, 1).await.unwrap();
    send.reset(VarInt::from_u32(7)).unwrap();
    let error = read(&mut *duplex.receive, 1).await.unwrap_err();
    assert!(matches!(error, TransportError::Reset { code: 7 }), "{error}");
    receive.stop(VarInt::from_u32(9)).unwrap();
    let stopped = poll_fn(|cx| {
        // Writes succeed until the stop has arrived.
        let mut chunks = [Bytes::from_static(b"more")];
        match duplex.send.poll_write(cx, &mut chunks) {
            Poll::Ready(Ok(_)) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    });
    let error = stopped.await.unwrap_err();
    assert!(matches!(error, TransportError::Stopped { code: 9 }), "{error}");
}

#[tokio::test]
async fn a_client_of_another_protocol_or_of_none_is_refused() {
    let identity = Identity::load_or_make(None).unwrap();
    let listener = listener(&identity, |_| {});
    for protocols in [&[b"h3".as_slice()][..], &[]] {
        let (client, broker) = connect(&listener, protocols, &identity).await;
        assert!(client.is_err());
        let error = broker.unwrap_err();
        assert!(matches!(error, TransportError::ForeignProtocol(_)), "{error}");
    }
}

#[tokio::test]
async fn a_connection_begins_with_room_for_a_burst_and_asks_for_early_acknowledgements() {
    let identity = Identity::load_or_make(None).unwrap();
    let listener = listener(&identity, |_| {});
    let (client, broker) = connect(&listener, &[ALPN], &identity).await;
    let (client, broker) = (client.unwrap(), broker.unwrap());
    assert!(broker.connection.stats().path.cwnd >= INITIAL_CONGESTION_WINDOW_BYTES);
    assert!(client.stats().path.cwnd < INITIAL_CONGESTION_WINDOW_BYTES, "quinn's own default is smaller");

    // And the client is asked to delay acknowledgements no longer than we can wait.
    let (mut send, mut receive) = client.open_bi().await.unwrap();
    send.write_all(b"anything").await.unwrap();
    let mut duplex = broker.accept().await.unwrap();
    write_all(&mut *duplex.send, &mut [Bytes::from_static(b"an answer")]).await.unwrap();
    receive.read_chunk(1_024, true).await.unwrap();
    assert!(client.stats().frame_rx.ack_frequency > 0, "{:?}", client.stats().frame_rx);
}

#[tokio::test]
async fn a_stranger_has_one_quic_stream_until_it_is_admitted() {
    let identity = Identity::load_or_make(None).unwrap();
    let listener = listener(&identity, |_| {});
    let (client, broker) = connect(&listener, &[ALPN], &identity).await;
    let (client, broker) = (client.unwrap(), broker.unwrap());
    let (mut send, _receive) = client.open_bi().await.unwrap();
    send.write_all(b"x").await.unwrap();
    broker.accept().await.unwrap();
    let mut second = Box::pin(client.open_bi());
    assert!(!is_ready(&mut second).await);
    broker.admit();
    second.await.unwrap();
}

#[tokio::test]
async fn a_stranger_can_leave_no_more_unread_than_the_small_window() {
    let identity = Identity::load_or_make(None).unwrap();
    let listener = listener(&identity, |_| {});
    let (client, broker) = connect(&listener, &[ALPN], &identity).await;
    let (client, broker) = (client.unwrap(), broker.unwrap());
    let (mut send, _receive) = client.open_bi().await.unwrap();
    let megabyte = vec![0; 1 << 20];
    let mut write = Box::pin(send.write_all(&megabyte));
    let mut accept = Box::pin(broker.accept());
    // Nothing is read yet, so only flow control can keep the write from being taken whole.
    let mut duplex = tokio::select! {
        biased;
        _ = &mut write => panic!("everything was taken"),
        duplex = &mut accept => duplex.unwrap(),
    };
    broker.admit();
    let mut received = 0;
    let reading = async {
        while received < megabyte.len() {
            received += read(&mut *duplex.receive, 1 << 16).await.unwrap().unwrap().len();
        }
    };
    let (written, ()) = tokio::join!(write, reading);
    written.unwrap();
}

#[tokio::test]
async fn a_client_above_the_limit_is_refused_and_the_others_stay() {
    let identity = Identity::load_or_make(None).unwrap();
    // Nobody says hello here, so all are strangers.
    let listener = listener(&identity, |config| config.handshakes_max = 1);
    let (client_one, broker) = connect(&listener, &[ALPN], &identity).await;
    let (client_one, _broker) = (client_one.unwrap(), broker.unwrap());
    let endpoint = client(identity.certificate().unwrap(), &[ALPN]);
    let connecting = endpoint.connect(listener.local_addr(), "localhost").unwrap();
    let refused = tokio::select! {
        refused = connecting => refused.unwrap_err(),
        _ = listener.accept() => panic!("a client above the limit was let in"),
    };
    assert!(matches!(refused, ConnectionError::ConnectionClosed(_)), "{refused}");
    let counters = &listener.peers.counters;
    assert_eq!(counters.connections_refused.get(ConnectionRefusal::Handshakes), 1);
    assert!(client_one.close_reason().is_none());
}

#[tokio::test]
async fn when_many_shake_hands_a_stranger_shows_its_address_first_and_is_served_all_the_same() {
    let identity = Identity::load_or_make(None).unwrap();
    let listener = listener(&identity, |config| config.handshakes_max = 8);
    let mut strangers = Vec::new();
    for turn in 0..4 {
        let endpoint = client(identity.certificate().unwrap(), &[ALPN]);
        let connecting = endpoint.connect(listener.local_addr(), "localhost").unwrap();
        let serving = async {
            let incoming = listener.accept().await.unwrap();
            // From a quarter of the limit on.
            assert_eq!(incoming.incoming.remote_address_validated(), turn >= 2, "stranger {turn}");
            incoming.handshake().await.unwrap()
        };
        let (client, broker) = tokio::join!(connecting, serving);
        strangers.push((client.unwrap(), broker, endpoint));
    }
    assert_eq!(listener.peers.counters.handshakes_in_progress.get(), 4);
    strangers.iter().for_each(|(_, broker, _)| broker.admit());
    assert_eq!(listener.peers.counters.handshakes_in_progress.get(), 0);
    drop(strangers);
    assert_eq!(listener.peers.counters.memory_used_bytes.get(), 0, "a connection's share goes with it");
}

#[tokio::test]
async fn a_handshake_that_stalls_is_given_up() {
    let identity = Identity::load_or_make(None).unwrap();
    let listener = listener(&identity, |config| config.handshake_timeout = Duration::from_millis(50));
    // Takes a client's first packet to the broker and brings no answer back.
    let relay = UdpSocket::bind(ANY_PORT).unwrap();
    let endpoint = client(identity.certificate().unwrap(), &[ALPN]);
    let relay_addr = relay.local_addr().unwrap();
    let connecting = endpoint.connect(relay_addr, "localhost").unwrap();
    tokio::spawn(connecting);
    relay.set_nonblocking(true).unwrap();
    let relay = tokio::net::UdpSocket::from_std(relay).unwrap();
    let mut packet = [0; 2_048];
    let len = relay.recv(&mut packet).await.unwrap();
    relay.send_to(&packet[..len], listener.local_addr()).await.unwrap();
    let handshake = listener.accept().await.unwrap().handshake();
    let error = tokio::time::timeout(Duration::from_secs(5), handshake).await.expect("given up in time").unwrap_err();
    assert!(matches!(&error, TransportError::Lost(reason) if reason.contains("50ms")), "{error}");
    let counters = &listener.peers.counters;
    assert_eq!(counters.handshakes_failed.get(HandshakeFailure::TimedOut), 1);
    assert_eq!((counters.handshakes_in_progress.get(), counters.memory_used_bytes.get()), (0, 0));
}

#[test]
fn every_client_is_told_of_the_stop_before_close_returns() {
    const CLIENTS: usize = 100;
    let identity = Identity::load_or_make(None).unwrap();
    let (address_sender, address) = std::sync::mpsc::channel();
    let certificate = identity.certificate().unwrap().clone();
    let broker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = listener(&identity, |_| {});
            address_sender.send(listener.local_addr()).unwrap();
            let mut connections = Vec::new();
            while connections.len() < CLIENTS {
                let incoming = listener.accept().await.unwrap();
                connections.push(incoming.handshake().await.unwrap());
            }
            listener.close(CloseCode::Stopping, "stopping").await;
            assert!(listener.accept().await.is_none());
        });
        // The runtime goes right here: whatever was not sent by now never is.
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let address = address.recv().unwrap();
        let endpoint = client(&certificate, &[ALPN]);
        let mut connections = Vec::new();
        for _ in 0..CLIENTS {
            connections.push(endpoint.connect(address, "localhost").unwrap().await.unwrap());
        }
        for connection in connections {
            let error = connection_error(connection.closed().await);
            let TransportError::Closed { code, reason } = error else {
                panic!("unexpected {error}");
            };
            assert_eq!((code, reason.as_str()), (CloseCode::Stopping.number(), "stopping"));
        }
    });
    broker.join().unwrap();
}

#[test]
fn an_address_in_use_is_told_as_such() {
    let first = open_socket(ANY_PORT.parse().unwrap()).unwrap();
    let address = first.local_addr().unwrap();
    let error = open_socket(address).unwrap_err();
    assert!(matches!(error, ListenError::InUse { address: told } if told == address), "{error}");
}

#[test]
fn a_client_of_a_broker_that_was_killed_is_told_by_the_next_one_at_its_next_packet() {
    let identity = Identity::load_or_make(None).unwrap();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (killed, clients) = (runtime(), runtime());
    let (address, accepting) = {
        let _inside = killed.enter();
        let listener = listener(&identity, |_| {});
        let address = listener.local_addr();
        (address, killed.spawn(async move { (listener.accept().await.unwrap().handshake().await.unwrap(), listener) }))
    };
    let certificate = identity.certificate().unwrap().clone();
    let connection =
        clients.block_on(async { client(&certificate, &[ALPN]).connect(address, "localhost").unwrap().await.unwrap() });
    let served = killed.block_on(accepting).unwrap();
    // Nothing says goodbye: what would send it goes first.
    drop(killed);
    drop(served);

    let next = runtime();
    let _inside = next.enter();
    let _listener = listener(&identity, |config| config.listen = address);
    let error = clients.block_on(async {
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&[7; 200]).await.unwrap();
        // Far below the idle timeout, which would end the connection too.
        tokio::time::timeout(Duration::from_secs(5), connection.closed()).await.expect("told within seconds")
    });
    assert!(matches!(error, ConnectionError::Reset), "{error}");
}
