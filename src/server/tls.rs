//! The broker's identity: a key, a self-made certificate, and the pin that clients know it by.
//!
//! With a data folder both are made on the first start and kept there, the key as `key.pem`, the
//! certificate as `certificate.pem`, readable by their owner alone. What is there is used and never
//! replaced: a new key would lock out every client that knows the old pin. The one repair made
//! silently safe is a certificate missing beside its key, as a crash in the first start leaves it:
//! it is made again from the same key, so the pin stays what it was.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::server::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidelog_protocol::ALPN;

/// The certificate's file name in the data folder.
pub const CERTIFICATE_FILE: &str = "certificate.pem";
/// The key's file name in the data folder.
pub const KEY_FILE: &str = "key.pem";

/// Ends the name of a file that is still being written.
const UNFINISHED_SUFFIX: &str = ".new";
/// A key or certificate is a few kilobytes; nothing larger is read.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// The key and certificate a broker shows to its clients.
#[derive(Debug, Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    pin: String,
    reset_key: ring::hmac::Key,
}

impl Identity {
    /// The identity kept in `folder`, made and stored there if there is none yet; without a folder
    /// a new one that lives only as long as this value.
    ///
    /// The folder must exist, and the caller must hold it for itself: two brokers making an
    /// identity in one folder would replace each other's.
    ///
    /// # Errors
    ///
    /// Whatever keeps the identity from being the one it was before; nothing was changed then.
    pub fn load_or_make(folder: Option<&Path>) -> Result<Identity, IdentityError> {
        let Some(folder) = folder else {
            let key = KeyPair::generate().map_err(IdentityError::Make)?;
            let certificate = self_signed(&key)?;
            let paths = Paths::in_folder(Path::new(""));
            return Identity::from_pem(&key.serialize_pem(), &certificate, &paths);
        };
        let paths = Paths::in_folder(folder);
        let key = read_if_present(&paths.key)?;
        let certificate = read_if_present(&paths.certificate)?;
        match (key, certificate) {
            (Some(key), Some(certificate)) => {
                refuse_open_key(&paths.key)?;
                Identity::from_pem(&key, &certificate, &paths)
            }
            (None, Some(_)) => Err(IdentityError::KeyMissing { key: paths.key, certificate: paths.certificate }),
            (Some(key), None) => {
                refuse_open_key(&paths.key)?;
                let pair = KeyPair::from_pem(&key).map_err(|error| IdentityError::Unreadable {
                    path: paths.key.clone(),
                    reason: error.to_string(),
                })?;
                let certificate = self_signed(&pair)?;
                let identity = Identity::from_pem(&key, &certificate, &paths)?;
                store(folder, &paths.certificate, &certificate)?;
                tracing::info!(
                    certificate = %paths.certificate.display(),
                    "made the certificate that was missing beside its key; the pin stays the same"
                );
                Ok(identity)
            }
            (None, None) => {
                let pair = KeyPair::generate().map_err(IdentityError::Make)?;
                let key = pair.serialize_pem();
                let certificate = self_signed(&pair)?;
                let identity = Identity::from_pem(&key, &certificate, &paths)?;
                // The key first: a crash in between leaves a key alone, which is the identity.
                store(folder, &paths.key, &key)?;
                store(folder, &paths.certificate, &certificate)?;
                Ok(identity)
            }
        }
    }

    /// SHA-256 over the certificate's SubjectPublicKeyInfo, as 64 lower-case hex digits.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// What the TLS side of the listener works with: TLS 1.3 alone, tidelog's protocol alone, no
    /// early data, which an eavesdropper could send a second time.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Tls`] if the crypto provider lacks TLS 1.3.
    pub fn server_config(&self) -> Result<ServerConfig, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let resolver = SingleCertAndKey::from(CertifiedKey::clone(&self.certified));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// What stateless resets are signed with (RFC 9000, section 10.3). Derived from the private key, so that it is the
    /// same after a restart: a client of the broker before is then told at its next packet that its connection is gone,
    /// instead of waiting for its idle timeout.
    pub fn reset_key(&self) -> ring::hmac::Key {
        self.reset_key.clone()
    }

    /// The certificate itself, in DER.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }

    fn from_pem(key: &str, certificate: &str, paths: &Paths) -> Result<Identity, IdentityError> {
        let unreadable = |path: &Path, reason: String| IdentityError::Unreadable { path: path.to_owned(), reason };
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unreadable(&paths.certificate, error.to_string()))?;
        if chain.is_empty() {
            let reason = "it holds no certificate".to_owned();
            return Err(unreadable(&paths.certificate, reason));
        }
        let key =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| unreadable(&paths.key, error.to_string()))?;
        let signing = rustls::crypto::ring::sign::any_supported_type(&key)
            .map_err(|error| unreadable(&paths.key, error.to_string()))?;
        let Some(public_key) = signing.public_key() else {
            let reason = "its public half cannot be derived".to_owned();
            return Err(unreadable(&paths.key, reason));
        };
        let pin = pin_of(&public_key);
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.secret_der());
        let reset_secret = ring::hmac::sign(&secret, b"tidelog stateless reset");
        let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset_secret.as_ref());
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                IdentityError::Mismatch { key: paths.key.clone(), certificate: paths.certificate.clone() }
            }
            other => unreadable(&paths.certificate, other.to_string()),
        })?;
        Ok(Identity { certified: Arc::new(certified), pin, reset_key })
    }
}

/// SHA-256 over a SubjectPublicKeyInfo in DER, as 64 lower-case hex digits.
fn pin_of(public_key: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, public_key);
    let mut pin = String::with_capacity(64);
    for byte in digest.as_ref() {
        // Writing to a `String` cannot fail.
        let _ = write!(pin, "{byte:02x}");
    }
    pin
}

/// What keeps a broker from having an identity. The files are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The key could not be made.
    #[error("could not make a key and certificate")]
    Make(#[source] rcgen::Error),
    /// A file could not be read or written.
    #[error("could not {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be: cut off, edited or damaged.
    #[error(
        "{} cannot be used: {reason}; restore it from a backup, or move key.pem and certificate.pem away to get a \
         new identity with a new pin, which every client must then be told",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is a certificate without its key.
    #[error(
        "{} is missing, though {} is there; restore it from a backup, or move the certificate away to get a new \
         identity with a new pin, which every client must then be told",
        key.display(),
        certificate.display()
    )]
    KeyMissing {
        /// The file that is missing.
        key: PathBuf,
        /// The file that is there.
        certificate: PathBuf,
    },
    /// Key and certificate do not belong together.
    #[error(
        "{} and {} do not belong together; restore both from one backup, or move the certificate away to have one \
         made for the key",
        key.display(),
        certificate.display()
    )]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// Others may read or write the key.
    #[error(
        "{} may be read or written by others (mode {mode:03o}); if nobody has read it, type: chmod 600 {}",
        path.display(),
        path.display()
    )]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// TLS cannot work with it.
    #[error("TLS could not be set up")]
    Tls(#[from] rustls::Error),
}

struct Paths {
    key: PathBuf,
    certificate: PathBuf,
}

impl Paths {
    fn in_folder(folder: &Path) -> Paths {
        Paths { key: folder.join(KEY_FILE), certificate: folder.join(CERTIFICATE_FILE) }
    }
}

/// A certificate over `key` for this machine's own names, in PEM. Clients hold on to the key's pin,
/// so the certificate never expires within anybody's lifetime.
fn self_signed(key: &KeyPair) -> Result<String, IdentityError> {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut params = CertificateParams::new(names).map_err(IdentityError::Make)?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "tidelog broker");
    params.distinguished_name = name;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.self_signed(key).map_err(IdentityError::Make)?;
    Ok(certificate.pem())
}

fn read_if_present(path: &Path) -> Result<Option<String>, IdentityError> {
    let failed = |source| IdentityError::File { action: "read", path: path.to_owned(), source };
    let len = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if len > PEM_BYTES_MAX {
        return Err(IdentityError::Unreadable {
            path: path.to_owned(),
            reason: format!("{len} bytes are too many for a key or certificate"),
        });
    }
    fs::read_to_string(path).map(Some).map_err(failed)
}

fn refuse_open_key(path: &Path) -> Result<(), IdentityError> {
    let metadata = fs::metadata(path).map_err(|source| IdentityError::File {
        action: "look at",
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(IdentityError::KeyExposed { path: path.to_owned(), mode }) }
}

/// Puts `text` at `path`, whole or not at all, whenever the power goes.
fn store(folder: &Path, path: &Path, text: &str) -> Result<(), IdentityError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::File { action, path, source }
    };
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(UNFINISHED_SUFFIX);
    let unfinished = PathBuf::from(unfinished);
    match fs::remove_file(&unfinished) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("remove", &unfinished)(error)),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(failed("create", &unfinished))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write", &unfinished))?;
    fs::rename(&unfinished, path).map_err(failed("rename into place", path))?;
    // The new name lives in the folder: without this sync a power cut could take the key away
    // after clients have learnt its pin.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(folder: &Path) -> Result<Identity, IdentityError> {
        Identity::load_or_make(Some(folder))
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_second_start_shows_the_same_pin() {
        let folder = tempfile::tempdir().unwrap();
        let first = load(folder.path()).unwrap();
        let second = load(folder.path()).unwrap();
        assert_eq!(first.pin(), second.pin());
        assert_eq!(first.certificate(), second.certificate());
    }

    #[test]
    fn files_are_private_and_nothing_unfinished_is_left() {
        let folder = tempfile::tempdir().unwrap();
        load(folder.path()).unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, [CERTIFICATE_FILE, KEY_FILE]);
        assert_eq!(mode(&folder.path().join(KEY_FILE)), 0o600);
        assert_eq!(mode(&folder.path().join(CERTIFICATE_FILE)), 0o600);
    }

    #[test]
    fn the_pin_is_64_hex_digits_over_the_public_key() {
        let identity = Identity::load_or_make(None).unwrap();
        assert_eq!(identity.pin().len(), 64);
        assert!(identity.pin().bytes().all(|byte| b"0123456789abcdef".contains(&byte)));
        // SHA-256 of nothing, from FIPS 180-4's published examples.
        assert_eq!(pin_of(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        // The certificate carries the very key the pin is made over.
        let key = identity.certified.key.public_key().unwrap();
        let certificate = identity.certificate().unwrap();
        assert!(certificate.windows(key.len()).any(|window| window == key.as_ref()));
    }

    #[test]
    fn two_brokers_in_memory_have_different_identities() {
        let first = Identity::load_or_make(None).unwrap();
        let second = Identity::load_or_make(None).unwrap();
        assert_ne!(first.pin(), second.pin());
    }

    #[test]
    fn a_key_left_alone_by_a_crash_keeps_its_pin() {
        let folder = tempfile::tempdir().unwrap();
        let pin = load(folder.path()).unwrap().pin().to_owned();
        fs::remove_file(folder.path().join(CERTIFICATE_FILE)).unwrap();
        assert_eq!(load(folder.path()).unwrap().pin(), pin);
        assert!(folder.path().join(CERTIFICATE_FILE).exists());
    }

    #[test]
    fn a_crash_while_writing_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("key.pem.new"), "-----BEGIN").unwrap();
        load(folder.path()).unwrap();
        assert!(!folder.path().join("key.pem.new").exists());
    }

    #[test]
    fn a_certificate_without_its_key_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        load(folder.path()).unwrap();
        fs::remove_file(folder.path().join(KEY_FILE)).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(matches!(error, IdentityError::KeyMissing { .. }), "{error}");
        assert!(!folder.path().join(KEY_FILE).exists());
    }

    #[test]
    fn a_mismatched_pair_is_refused_and_left_alone() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        load(one.path()).unwrap();
        load(other.path()).unwrap();
        let foreign = fs::read(other.path().join(CERTIFICATE_FILE)).unwrap();
        fs::write(one.path().join(CERTIFICATE_FILE), &foreign).unwrap();
        let error = load(one.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Mismatch { .. }), "{error}");
        assert_eq!(fs::read(one.path().join(CERTIFICATE_FILE)).unwrap(), foreign);
    }

    #[test]
    fn files_cut_short_are_refused_at_every_length() {
        let folder = tempfile::tempdir().unwrap();
        load(folder.path()).unwrap();
        for name in [KEY_FILE, CERTIFICATE_FILE] {
            let path = folder.path().join(name);
            let whole = fs::read(&path).unwrap();
            // The last byte is the line end behind the PEM frame, which carries nothing.
            for len in (0..whole.len() - 2).step_by(7) {
                fs::write(&path, &whole[..len]).unwrap();
                let error = load(folder.path()).unwrap_err();
                assert!(
                    matches!(&error, IdentityError::Unreadable { path, .. } if path.ends_with(name)),
                    "{name} cut to {len}: {error}"
                );
                assert_eq!(fs::read(&path).unwrap().len(), len);
            }
            fs::write(&path, &whole).unwrap();
        }
        load(folder.path()).unwrap();
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        load(folder.path()).unwrap();
        let path = folder.path().join(KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(matches!(error, IdentityError::KeyExposed { mode: 0o644, .. }));
        assert!(error.to_string().contains("chmod 600"));
    }

    #[test]
    fn tls_offers_one_protocol_and_no_early_data() {
        let config = Identity::load_or_make(None).unwrap().server_config().unwrap();
        assert_eq!(config.alpn_protocols, [b"tidelog/1".to_vec()]);
        assert_eq!(config.max_early_data_size, 0);
    }
}
