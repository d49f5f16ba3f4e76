//! TLS as tidelog uses it: version 1.3 only, one cryptographic provider named explicitly, a pinned key or authorities
//! from a file. Nothing of the process (default provider, system certificates) is read or changed.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tidelog_protocol::ALPN;

use crate::pin::Pin;
use crate::trust::Trust;

/// The client's side of TLS for a broker trusted so.
pub(crate) fn client_config(trust: &Trust) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(crypto_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Pin { pin, .. } => {
            Arc::new(PinVerifier { pin: *pin, algorithms: provider.signature_verification_algorithms })
        }
        Trust::Authorities { file } => {
            WebPkiServerVerifier::builder_with_provider(Arc::new(read_authorities(file)?), Arc::clone(&provider))
                .build()
                .map_err(|error| TlsError::Authorities { file: file.clone(), reason: error.to_string() })?
        }
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError::Provider { reason: error.to_string() })?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    // A resumed session shows no certificate; a client connects too rarely for that to be worth a second path to trust.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// ring, with the cipher first that is fastest where the processor has AES.
fn crypto_provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
            provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..provider::default_provider()
    }
}

fn read_authorities(file: &PathBuf) -> Result<RootCertStore, TlsError> {
    let flaw = |reason: String| TlsError::Authorities { file: file.clone(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| flaw(error.to_string()))? {
        let certificate = certificate.map_err(|error| flaw(error.to_string()))?;
        roots.add(certificate).map_err(|error| flaw(error.to_string()))?;
    }
    if roots.is_empty() { Err(flaw("no certificate in it".into())) } else { Ok(roots) }
}

/// Accepts one key, whatever name and dates its certificate bears; that the peer really has the key is still proven by
/// the handshake's signature.
#[derive(Debug)]
struct PinVerifier {
    pin: Pin,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Pins are no secret, so that comparing them takes no constant time.
        match Pin::of_certificate(end_entity) {
            Ok(found) if found == self.pin => Ok(ServerCertVerified::assertion()),
            Ok(found) => {
                tracing::debug!(%found, expected = %self.pin, "the broker has another key");
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            Err(_) => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Why TLS can't be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file given as `--ca` is no use.
    #[error("the authorities in {} can't be used: {reason}", file.display())]
    Authorities {
        /// The PEM file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The cryptographic provider lacks what TLS 1.3 needs: a mistake in this crate.
    #[error("TLS can't be set up: {reason}")]
    Provider {
        /// What it lacks.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_configuration_is_tls_13_with_our_protocol_and_no_early_data() {
        let trust = Trust::Pin { pin: Pin::new([1; 32]), origin: "a test".into() };
        let config = client_config(&trust).unwrap();
        assert_eq!(config.alpn_protocols, [b"tidelog/1".to_vec()]);
        assert!(!config.enable_early_data);
        assert!(quinn::crypto::rustls::QuicClientConfig::try_from(config).is_ok());
        assert!(CryptoProvider::get_default().is_none(), "the process has no default provider because of us");
    }

    #[test]
    fn a_useless_authorities_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let refused = |file: &PathBuf| client_config(&Trust::Authorities { file: file.clone() }).unwrap_err();
        assert!(refused(&file).to_string().contains("ca.pem"));
        fs::write(&file, "nothing").unwrap();
        assert!(refused(&file).to_string().contains("no certificate"), "{}", refused(&file));
        let certificate = rcgen::generate_simple_self_signed(["broker".into()]).unwrap();
        fs::write(&file, certificate.cert.pem()).unwrap();
        assert!(client_config(&Trust::Authorities { file }).is_ok());
    }
}
