//! The QUIC connector against small servers made of quinn and rustls alone.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidelog_client::{Address, Pin, QuicConnector, Trust};
use tidelog_protocol::{CloseCode, Connection, Connector, TransportError, read, write_all};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

const SOON: Duration = Duration::from_secs(10);

struct Identity {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Identity {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
        Self { certificate: certificate.der().clone(), key }
    }

    fn pin(&self) -> Pin {
        Pin::of_certificate(&self.certificate).unwrap()
    }
}

/// Shows one certificate and signs with whatever key it was given.
#[derive(Debug)]
struct Resolver(Arc<CertifiedKey>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A server that echoes the first QUIC stream of each connection.
struct Server {
    address: SocketAddr,
    endpoint: Endpoint,
}

impl Server {
    fn start(certificate: &CertificateDer<'static>, key: &KeyPair, protocol: &[u8]) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = provider.key_provider.load_private_key(key).unwrap();
        let certified = CertifiedKey::new(vec![certificate.clone()], key);
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver(Arc::new(certified))));
        tls.alpn_protocols = vec![protocol.to_vec()];
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime)).unwrap();
        let server = Self { address: endpoint.local_addr().unwrap(), endpoint: endpoint.clone() };
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    if let Ok((mut send, mut receive)) = connection.accept_bi().await {
                        while let Ok(Some(chunk)) = receive.read_chunk(1 << 16, true).await {
                            let _ = send.write_all(&chunk.bytes).await;
                        }
                        let _ = send.finish();
                    }
                    connection.closed().await;
                });
            }
        });
        server
    }

    fn of(identity: &Identity) -> Self {
        Self::start(&identity.certificate, &identity.key, b"tidelog/1")
    }
}

async fn connect(address: &str, trust: Trust) -> Result<Arc<dyn Connection>, TransportError> {
    let connector = QuicConnector::new(&address.parse::<Address>().unwrap(), &trust).unwrap();
    timeout(SOON, connector.connect()).await.expect("an answer in time")
}

async fn connect_pinned(address: SocketAddr, pin: Pin) -> Result<Arc<dyn Connection>, TransportError> {
    connect(&address.to_string(), pinned(pin)).await
}

fn pinned(pin: Pin) -> Trust {
    let address = Address::default().with_pin(pin);
    let nowhere = tidelog_client::TrustEnvironment::of_process();
    Trust::find(&address, None, &nowhere).unwrap()
}

fn failed(connected: Result<Arc<dyn Connection>, TransportError>) -> TransportError {
    match connected {
        Ok(_) => panic!("this connection should not stand"),
        Err(error) => error,
    }
}

/// Sends `bytes` through the echo and returns what comes back.
async fn echo(connection: &dyn Connection, bytes: Bytes) -> Vec<u8> {
    let mut duplex = connection.open().await.unwrap();
    let write = async {
        // Two chunks, so that partly written ones are met.
        let half = bytes.len() / 2;
        write_all(duplex.send.as_mut(), &mut [bytes.slice(..half), bytes.slice(half..)]).await.unwrap();
        duplex.send.finish();
    };
    let receive = async {
        let mut received = Vec::new();
        while let Some(chunk) = read(duplex.receive.as_mut(), 1 << 16).await.unwrap() {
            received.extend_from_slice(&chunk);
        }
        received
    };
    tokio::join!(write, receive).1
}

#[tokio::test]
async fn the_pinned_key_is_connected_to_whatever_its_certificate_says() {
    let identity = Identity::new();
    let server = Server::of(&identity);
    // The certificate is for `localhost`, the address is a number.
    let connection = connect_pinned(server.address, identity.pin()).await.unwrap();
    let bytes = Bytes::from((0..3_000_000_u32).map(|number| (number % 251) as u8).collect::<Vec<_>>());
    let echoed = timeout(SOON, echo(connection.as_ref(), bytes.clone())).await.unwrap();
    assert!(echoed == bytes, "three megabytes came back as they were");
    assert_eq!(connection.remote(), server.address.to_string());
}

#[tokio::test]
async fn another_key_is_not_trusted() {
    let server = Server::of(&Identity::new());
    let error = failed(connect_pinned(server.address, Identity::new().pin()).await);
    assert!(matches!(&error, TransportError::Untrusted(reason) if reason.contains("the address")), "{error:?}");
}

#[tokio::test]
async fn the_right_certificate_without_its_key_is_not_trusted() {
    let victim = Identity::new();
    let thief = Identity::new();
    let server = Server::start(&victim.certificate, &thief.key, b"tidelog/1");
    let error = failed(connect_pinned(server.address, victim.pin()).await);
    assert!(matches!(error, TransportError::Untrusted(_)), "{error:?}");
}

#[tokio::test]
async fn another_protocol_is_told_as_such() {
    let identity = Identity::new();
    let server = Server::start(&identity.certificate, &identity.key, b"h3");
    let error = failed(connect_pinned(server.address, identity.pin()).await);
    assert!(matches!(error, TransportError::ForeignProtocol(_)), "{error:?}");
}

#[tokio::test]
async fn authorities_vouch_for_names_only() {
    let authority = || {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (ours, other) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &ours).unwrap().der().clone();
    let server = Server::start(&certificate, &key, b"tidelog/1");
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: String| {
        let file = folder.path().join(name);
        std::fs::write(&file, pem).unwrap();
        let environment = tidelog_client::TrustEnvironment::of_process();
        Trust::find(&Address::default(), Some(&file), &environment).unwrap()
    };
    let named = format!("localhost:{}", server.address.port());
    let trusted = file("ours.pem", ours.pem());
    connect(&named, trusted.clone()).await.unwrap();
    let error = failed(connect(&server.address.to_string(), trusted).await);
    assert!(matches!(error, TransportError::Untrusted(_)), "another name: {error:?}");
    let error = failed(connect(&named, file("other.pem", other.pem())).await);
    assert!(matches!(error, TransportError::Untrusted(_)), "another authority: {error:?}");
}

/// On Linux the kernel says that nobody listens; elsewhere only silence does.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_closed_port_is_noticed_at_once() {
    let port = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let started = Instant::now();
    let error = failed(connect_pinned(port, Identity::new().pin()).await);
    assert!(matches!(&error, TransportError::Unreachable(reason) if reason.contains("refused")), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

/// A killed process says no goodbye: here its runtime goes, with socket and all.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_killed_broker_is_noticed_with_the_next_packet() {
    let identity = Identity::new();
    let (started, address) = oneshot::channel();
    let (kill, killed) = oneshot::channel::<()>();
    let pin = identity.pin();
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::of(&identity);
            started.send(server.address).unwrap();
            let _ = killed.await;
        });
    });
    let connection = connect_pinned(address.await.unwrap(), pin).await.unwrap();
    let mut duplex = connection.open().await.unwrap();
    write_all(duplex.send.as_mut(), &mut [Bytes::from_static(b"x")]).await.unwrap();
    assert_eq!(read(duplex.receive.as_mut(), 10).await.unwrap().as_deref(), Some(&b"x"[..]));
    kill.send(()).unwrap();
    tokio::task::spawn_blocking(|| process.join().unwrap()).await.unwrap();
    // It may be known already: QUIC had acknowledgements to send.
    let _ = write_all(duplex.send.as_mut(), &mut [Bytes::from_static(b"y")]).await;
    let error = timeout(Duration::from_secs(2), connection.closed()).await.expect("noticed long before idleness");
    assert!(matches!(error, TransportError::Lost(_)), "{error:?}");
}

#[tokio::test]
async fn a_close_tells_its_code_to_both_sides() {
    let identity = Identity::new();
    let server = Server::of(&identity);
    let connection = connect_pinned(server.address, identity.pin()).await.unwrap();
    assert_eq!(server.endpoint.open_connections(), 1);
    connection.close(CloseCode::Done, "bye");
    let error = timeout(SOON, connection.closed()).await.unwrap();
    assert!(matches!(error, TransportError::Lost(_)), "{error:?}");

    let connection = connect_pinned(server.address, identity.pin()).await.unwrap();
    echo(connection.as_ref(), Bytes::from_static(b"x")).await;
    server.endpoint.close(quinn::VarInt::from_u32(CloseCode::Busy as u32), b"no room");
    let error = timeout(SOON, connection.closed()).await.unwrap();
    assert_eq!(error, TransportError::Closed { code: CloseCode::Busy as u32, reason: "no room".into() });
}

#[tokio::test]
async fn a_close_ends_as_soon_as_the_farewell_has_left() {
    let identity = Identity::new();
    let server = Server::of(&identity);
    let mut shortest = Duration::MAX;
    for _ in 0..20 {
        let connection = connect_pinned(server.address, identity.pin()).await.unwrap();
        let since = Instant::now();
        connection.close(CloseCode::Done, "");
        timeout(SOON, connection.closed()).await.unwrap();
        shortest = shortest.min(since.elapsed());
    }
    // The wait would give up by itself after 50 ms, each time.
    assert!(shortest < Duration::from_millis(40), "{shortest:?}");
}

#[tokio::test]
async fn a_farewell_that_has_arrived_is_heard_before_the_port_is_found_closed() {
    let identity = Identity::new();
    let (started, address) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let pin = identity.pin();
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::of(&identity);
            started.send(server.address).unwrap();
            let _ = stopped.await;
            server.endpoint.close(quinn::VarInt::from_u32(CloseCode::Stopping as u32), b"stopping");
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        });
    });
    let connection = connect_pinned(address.await.unwrap(), pin).await.unwrap();
    let mut duplex = connection.open().await.unwrap();
    write_all(duplex.send.as_mut(), &mut [Bytes::from_static(b"x")]).await.unwrap();
    assert_eq!(read(duplex.receive.as_mut(), 10).await.unwrap().as_deref(), Some(&b"x"[..]));
    stop.send(()).unwrap();
    // Nothing is received meanwhile, and then something is sent to where nobody is any more.
    process.join().unwrap();
    let _ = write_all(duplex.send.as_mut(), &mut [Bytes::from_static(b"y")]).await;
    let error = timeout(Duration::from_secs(2), connection.closed()).await.unwrap();
    assert_eq!(error, TransportError::Closed { code: CloseCode::Stopping as u32, reason: "stopping".into() });
}
