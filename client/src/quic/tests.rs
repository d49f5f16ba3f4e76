//! What can only be seen from within: how a connection starts.

use std::net::Ipv4Addr;

use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tidelog_protocol::ALPN;

use super::*;
use crate::pin::Pin;
use crate::trust::TrustEnvironment;

/// A server of quinn alone, with quinn's own settings.
fn server() -> (Endpoint, Pin) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    let pin = Pin::of_certificate(certificate.der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    (Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime)).unwrap(), pin)
}

#[tokio::test]
async fn a_connection_begins_with_room_for_a_burst_and_asks_for_early_acknowledgements() {
    let (server, pin) = server();
    let address = server.local_addr().unwrap();
    let named: Address = address.to_string().parse().unwrap();
    let trust = Trust::find(&named.clone().with_pin(pin), None, &TrustEnvironment::of_process()).unwrap();
    let connector = QuicConnector::new(&named, &trust).unwrap();
    let accepted = async { server.accept().await.unwrap().await.unwrap() };
    let (connected, accepted) = tokio::join!(connect_one(address, connector.config.clone(), "localhost"), accepted);
    let (ours, theirs) = (connected.unwrap(), accepted);
    // Acknowledgements of the handshake may have let it grow.
    assert!(ours.connection.stats().path.cwnd >= INITIAL_CONGESTION_WINDOW_BYTES, "{:?}", ours.connection.stats().path);
    assert!(theirs.stats().path.cwnd < INITIAL_CONGESTION_WINDOW_BYTES, "quinn's own default is smaller");

    // And the server is asked to delay acknowledgements no longer than we can wait.
    let (mut send, _receive) = ours.connection.open_bi().await.unwrap();
    send.write_all(b"anything").await.unwrap();
    theirs.accept_bi().await.unwrap();
    assert!(theirs.stats().frame_rx.ack_frequency > 0, "{:?}", theirs.stats().frame_rx);
}
