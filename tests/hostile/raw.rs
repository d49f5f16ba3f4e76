//! A client of raw quinn, which can do what the real one would never do.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tidelog_protocol::{
    ALPN, Frame, FrameDecoder, FrameKind, Hello, Limits, Request, RequestFrame, StartAt, StreamId, encode_json_frame,
};

use super::harness::failure::Failure;

/// A connection that has said hello.
#[derive(Debug)]
pub(crate) struct RawClient {
    pub(crate) connection: Connection,
    _control: (SendStream, RecvStream),
    _endpoint: Endpoint,
}

/// Believes everybody: it is the broker that is tested.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A configuration that lets the broker send `window_bytes` ahead of being read.
///
/// # Errors
///
/// Trouble with TLS.
pub(crate) fn config(window_bytes: u32) -> Result<quinn::ClientConfig, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Failure::trouble("TLS", error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| Failure::trouble("TLS", error))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(window_bytes))
        .keep_alive_interval(Some(std::time::Duration::from_secs(5)));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

impl RawClient {
    /// Connects from a socket of its own and says hello.
    ///
    /// # Errors
    ///
    /// A violation if the broker does not take it.
    pub(crate) async fn connect(broker: SocketAddr, config: quinn::ClientConfig) -> Result<Self, Failure> {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut endpoint = Endpoint::client(local).map_err(|error| Failure::trouble("a socket", error))?;
        endpoint.set_default_client_config(config);
        let connecting =
            endpoint.connect(broker, "localhost").map_err(|error| Failure::trouble("connecting", error))?;
        let connection = connecting.await.map_err(|error| not_served(&error))?;
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| not_served(&error))?;
        let hello = Hello { versions: vec![1], client: "a test".to_owned(), token: None };
        write(&mut send, FrameKind::Hello, &hello).await?;
        let welcome = next_frame(&mut receive, &mut FrameDecoder::new(Limits::default())).await?;
        if welcome.kind != FrameKind::Welcome {
            return Err(Failure::Violation(format!("the hello was answered with {welcome:?}")));
        }
        Ok(Self { connection, _control: (send, receive), _endpoint: endpoint })
    }

    /// Opens a QUIC stream with a request and reads its answer.
    ///
    /// # Errors
    ///
    /// A violation if there is none.
    pub(crate) async fn open(&self, request: Request) -> Result<(SendStream, RecvStream, FrameDecoder), Failure> {
        let (mut send, mut receive) = self.connection.open_bi().await.map_err(|error| not_served(&error))?;
        write(&mut send, FrameKind::Request, &RequestFrame { id: 1, request }).await?;
        let mut decoder = FrameDecoder::new(Limits::default());
        let answer = next_frame(&mut receive, &mut decoder).await?;
        if answer.kind != FrameKind::Response {
            return Err(Failure::Violation(format!("a request was answered with {answer:?}")));
        }
        Ok((send, receive, decoder))
    }

    /// Subscribes from the start of a stream.
    ///
    /// # Errors
    ///
    /// As for [`Self::open`].
    pub(crate) async fn subscribe(&self, stream: StreamId) -> Result<(SendStream, RecvStream, FrameDecoder), Failure> {
        self.open(Request::Subscribe { stream, from: StartAt::Start, follow: true }).await
    }
}

/// The next frame of a QUIC stream.
///
/// # Errors
///
/// A violation if it ends before.
pub(crate) async fn next_frame(receive: &mut RecvStream, decoder: &mut FrameDecoder) -> Result<Frame, Failure> {
    loop {
        if let Some(frame) = decoder.next_frame().map_err(|error| not_served(&error))? {
            return Ok(frame);
        }
        let chunk = receive.read_chunk(1 << 16, true).await.map_err(|error| not_served(&error))?;
        let Some(chunk) = chunk else { return Err(Failure::violation("a QUIC stream has ended")) };
        decoder.push(&chunk.bytes);
    }
}

async fn write(send: &mut SendStream, kind: FrameKind, body: &impl serde::Serialize) -> Result<(), Failure> {
    let mut out = BytesMut::new();
    encode_json_frame(kind, body, &mut out).map_err(|error| Failure::trouble("encoding", error))?;
    send.write_all(&out).await.map_err(|error| not_served(&error))
}

fn not_served(error: &dyn std::fmt::Display) -> Failure {
    Failure::Violation(format!("a client is not served: {error}"))
}
