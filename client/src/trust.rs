//! Why a broker is believed to be the right one: where pins and authorities are looked for, in which order, and which
//! files count.
//!
//! The order: the pin in the address, a file of certificate authorities, then the files that a broker on this machine
//! leaves for its neighbours (`./tidelog-data/broker.json`, `$XDG_RUNTIME_DIR/tidelog/PORT.json` or else
//! `~/.local/state/tidelog/PORT.json`, `/run/tidelog/PORT.json`). Such a file is only worth what it takes to write it,
//! so it counts only if it and its folder belong to the caller or root and nobody else may write them. A broker is
//! never trusted because it was the first to answer.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::pin::Pin;

/// A trust file is three short fields; what is longer is something else.
const TRUST_FILE_BYTES_MAX: u64 = 4096;

/// What a broker's certificate is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trust {
    /// Exactly this key. `origin` names the place it was found at, for messages.
    Pin {
        /// The key's fingerprint.
        pin: Pin,
        /// The option or file it came from.
        origin: String,
    },
    /// Any certificate for the host's name that one of the authorities in this PEM file vouches for.
    Authorities {
        /// The PEM file.
        file: PathBuf,
    },
}

impl Trust {
    /// Looks for trust in the order of this module's documentation.
    ///
    /// # Errors
    ///
    /// [`TrustError`], which lists the places looked at, if none has any.
    pub fn find(
        address: &Address,
        authorities: Option<&Path>,
        environment: &TrustEnvironment,
    ) -> Result<Self, TrustError> {
        if let Some(pin) = address.pin() {
            return Ok(Self::Pin { pin, origin: "the address".into() });
        }
        if let Some(file) = authorities {
            return Ok(Self::Authorities { file: file.into() });
        }
        let mut looked_at = Vec::new();
        for path in environment.candidates(address.port()) {
            match TrustFile::read(&path, address.port(), environment.user) {
                Ok(file) => return Ok(Self::Pin { pin: file.pin, origin: path.display().to_string() }),
                Err(flaw) => looked_at.push((path, flaw)),
            }
        }
        Err(TrustError { place: address.place(), looked_at })
    }

    /// Where this trust came from, for messages.
    pub fn origin(&self) -> String {
        match self {
            Self::Pin { origin, .. } => origin.clone(),
            Self::Authorities { file } => file.display().to_string(),
        }
    }
}

/// Everything about the process that decides where trust files are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrustEnvironment {
    /// The folder that `./tidelog-data` is relative to.
    pub working_directory: PathBuf,
    /// `$XDG_RUNTIME_DIR`, if set.
    pub runtime_directory: Option<PathBuf>,
    /// `$HOME`, if set.
    pub home: Option<PathBuf>,
    /// The machine's own folder for running services, `/run`.
    pub system_directory: PathBuf,
    /// The numeric user whose files count, beside root's.
    pub user: u32,
}

impl TrustEnvironment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self {
            working_directory: PathBuf::from("."),
            runtime_directory: folder("XDG_RUNTIME_DIR"),
            home: folder("HOME"),
            system_directory: PathBuf::from("/run"),
            user: rustix::process::geteuid().as_raw(),
        }
    }

    /// The file that a broker on this port leaves for other programs of its user. None without a home.
    pub fn user_file(&self, port: u16) -> Option<PathBuf> {
        let folder = match (&self.runtime_directory, &self.home) {
            (Some(runtime), _) => runtime.clone(),
            (None, Some(home)) => home.join(".local/state"),
            (None, None) => return None,
        };
        Some(folder.join("tidelog").join(format!("{port}.json")))
    }

    /// The file that a broker run by root leaves for everybody on the machine.
    pub fn system_file(&self, port: u16) -> PathBuf {
        self.system_directory.join("tidelog").join(format!("{port}.json"))
    }

    /// All places, in the order they are looked at.
    pub fn candidates(&self, port: u16) -> Vec<PathBuf> {
        let data = self.working_directory.join("tidelog-data").join("broker.json");
        std::iter::once(data).chain(self.user_file(port)).chain([self.system_file(port)]).collect()
    }
}

/// What a running broker tells its neighbours on the same machine. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustFile {
    /// `HOST:PORT` as the broker listens.
    pub address: String,
    /// Its key.
    #[serde(with = "pin_as_text")]
    pub pin: Pin,
    /// Its process.
    pub pid: u32,
}

impl TrustFile {
    /// Reads one file and checks that it speaks of `port` and that nobody but `user` and root could have written it.
    ///
    /// # Errors
    ///
    /// [`TrustFileError`] says why the file does not count.
    pub fn read(path: &Path, port: u16, user: u32) -> Result<Self, TrustFileError> {
        let folder = path.parent().ok_or(TrustFileError::Missing)?;
        check_owner(&fs::metadata(folder)?, user, "its folder")?;
        // What is judged is the open file, so that nobody can swap it between the look and the read. Non-blocking, for
        // a pipe in its place would otherwise hold the client up for ever.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
        let metadata = file.metadata()?;
        check_owner(&metadata, user, "the file")?;
        if !metadata.is_file() || metadata.len() > TRUST_FILE_BYTES_MAX {
            return Err(TrustFileError::Malformed { reason: "not a small regular file".into() });
        }
        let mut text = String::new();
        file.take(TRUST_FILE_BYTES_MAX).read_to_string(&mut text)?;
        let found: Self =
            serde_json::from_str(&text).map_err(|error| TrustFileError::Malformed { reason: error.to_string() })?;
        let address: Address =
            found.address.parse().map_err(|error| TrustFileError::Malformed { reason: format!("address: {error}") })?;
        if address.port() == port { Ok(found) } else { Err(TrustFileError::OtherPort { port: address.port() }) }
    }

    /// Writes the file, readable by its owner only, under a temporary name first; makes its folder (0700) if missing.
    ///
    /// Nothing is synced: a broker writes its files anew at each start.
    ///
    /// # Errors
    ///
    /// Those of the file system. The old file, if any, is then untouched.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path of a trust file names no file"));
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let temporary = folder.join(format!(".{}.{}", name.to_string_lossy(), self.pid));
        // A leftover of a killed process of the same number; `create_new` below does not follow what lies there.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let written = self.write_content(&mut file).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn write_content(&self, file: &mut File) -> io::Result<()> {
        let mut text = serde_json::to_string(self)?;
        text.push('\n');
        file.write_all(text.as_bytes())
    }

    /// Removes the file if it still speaks of this very process; another broker's is left alone.
    ///
    /// # Errors
    ///
    /// Those of the file system, except that a missing file is no error.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = match fs::read_to_string(path) {
            Ok(text) if serde_json::from_str::<Self>(&text).is_ok_and(|found| found == *self) => fs::remove_file(path),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

mod pin_as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::pin::Pin;

    pub(super) fn serialize<S: Serializer>(pin: &Pin, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(pin)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pin, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn check_owner(metadata: &fs::Metadata, user: u32, what: &'static str) -> Result<(), TrustFileError> {
    judge_owner(metadata.uid(), metadata.mode(), user, what)
}

fn judge_owner(owner: u32, mode: u32, user: u32, what: &'static str) -> Result<(), TrustFileError> {
    if owner != user && owner != 0 {
        return Err(TrustFileError::ForeignOwner { what, owner });
    }
    if mode & 0o022 != 0 {
        return Err(TrustFileError::WritableByOthers { what, mode: mode & 0o7777 });
    }
    Ok(())
}

/// Why a trust file does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustFileError {
    /// There is none.
    #[error("not there")]
    Missing,
    /// The file system refused.
    #[error("can't be read: {reason}")]
    Unreadable {
        /// What it said.
        reason: String,
    },
    /// Somebody who could pretend to be the broker owns it.
    #[error("ignored: {what} belongs to user {owner}, neither you nor root")]
    ForeignOwner {
        /// The file or its folder.
        what: &'static str,
        /// The numeric user.
        owner: u32,
    },
    /// Somebody who could pretend to be the broker may change it.
    #[error("ignored: {what} may be written by others (mode {mode:o})")]
    WritableByOthers {
        /// The file or its folder.
        what: &'static str,
        /// The permission bits.
        mode: u32,
    },
    /// Not what a broker writes.
    #[error("ignored: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// It speaks of another broker.
    #[error("speaks of port {port}")]
    OtherPort {
        /// That broker's port.
        port: u16,
    },
}

impl From<io::Error> for TrustFileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            _ => Self::Unreadable { reason: error.to_string() },
        }
    }
}

/// No reason to trust the broker was found; it was not even connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustError {
    /// `HOST:PORT` of the broker.
    pub place: String,
    /// The files looked at, and why each does not count.
    pub looked_at: Vec<(PathBuf, TrustFileError)>,
}

impl fmt::Display for TrustError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "nothing says which key the broker at {} has. Looked at ", self.place)?;
        for (index, (path, flaw)) in self.looked_at.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(formatter, "{comma}{} ({flaw})", path.display())?;
        }
        write!(
            formatter,
            ". Is `tidelog serve` running? Otherwise give the key with --server tidelog://{}?pin=… or an authority \
             with --ca FILE",
            self.place
        )
    }
}

impl std::error::Error for TrustError {}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const PORT: u16 = 7440;

    fn environment(folder: &Path) -> TrustEnvironment {
        TrustEnvironment {
            working_directory: folder.join("work"),
            runtime_directory: Some(folder.join("runtime")),
            home: Some(folder.join("home")),
            system_directory: folder.join("system"),
            user: rustix::process::geteuid().as_raw(),
        }
    }

    fn file(byte: u8) -> TrustFile {
        TrustFile { address: format!("127.0.0.1:{PORT}"), pin: Pin::new([byte; 32]), pid: 123 }
    }

    fn found_pin(environment: &TrustEnvironment) -> Result<Pin, TrustError> {
        match Trust::find(&Address::default(), None, environment)? {
            Trust::Pin { pin, .. } => Ok(pin),
            other => panic!("{other:?}"),
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn places_are_looked_at_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let environment = environment(folder.path());
        let places = environment.candidates(PORT);
        let expected = ["work/tidelog-data/broker.json", "runtime/tidelog/7440.json", "system/tidelog/7440.json"];
        assert_eq!(places, expected.map(|place| folder.path().join(place)));
        for (byte, place) in [3, 2, 1].into_iter().zip(places.iter().rev()) {
            file(byte).write(place).unwrap();
            assert_eq!(found_pin(&environment).unwrap(), Pin::new([byte; 32]));
        }
        let without_runtime = TrustEnvironment { runtime_directory: None, ..environment };
        assert!(without_runtime.candidates(PORT)[1].ends_with("home/.local/state/tidelog/7440.json"));
        let homeless = TrustEnvironment { home: None, ..without_runtime };
        assert_eq!(homeless.candidates(PORT).len(), 2);
    }

    #[test]
    fn pin_and_authorities_come_before_files() {
        let folder = tempfile::tempdir().unwrap();
        let environment = environment(folder.path());
        file(1).write(&environment.candidates(PORT)[0]).unwrap();
        let authorities = Path::new("authorities.pem");
        let found = Trust::find(&Address::default(), Some(authorities), &environment).unwrap();
        assert_eq!(found, Trust::Authorities { file: authorities.into() });
        let pinned = Address::default().with_pin(Pin::new([9; 32]));
        let found = Trust::find(&pinned, Some(authorities), &environment).unwrap();
        assert_eq!(found, Trust::Pin { pin: Pin::new([9; 32]), origin: "the address".into() });
    }

    #[test]
    fn what_others_may_write_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let environment = environment(folder.path());
        let path = environment.candidates(PORT)[0].clone();
        file(1).write(&path).unwrap();
        assert_eq!(found_pin(&environment).unwrap(), Pin::new([1; 32]));
        let parent = path.parent().unwrap();
        for (place, refused, allowed) in [(path.as_path(), 0o620, 0o644), (parent, 0o702, 0o755)] {
            set_mode(place, refused);
            let error = found_pin(&environment).unwrap_err();
            assert!(matches!(error.looked_at[0].1, TrustFileError::WritableByOthers { .. }), "{error}");
            set_mode(place, allowed);
            assert_eq!(found_pin(&environment).unwrap(), Pin::new([1; 32]));
        }
    }

    #[test]
    fn only_the_callers_and_roots_files_count() {
        assert_eq!(judge_owner(0, 0o644, 1000, "the file"), Ok(()));
        assert_eq!(judge_owner(1000, 0o600, 1000, "the file"), Ok(()));
        let refused = judge_owner(1001, 0o600, 1000, "the file");
        assert_eq!(refused, Err(TrustFileError::ForeignOwner { what: "the file", owner: 1001 }));
    }

    #[test]
    fn another_port_or_nonsense_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let environment = environment(folder.path());
        let path = environment.candidates(PORT)[0].clone();
        TrustFile { address: "127.0.0.1:99".into(), ..file(1) }.write(&path).unwrap();
        let error = found_pin(&environment).unwrap_err();
        assert_eq!(error.looked_at[0].1, TrustFileError::OtherPort { port: 99 });
        fs::write(&path, "{").unwrap();
        let error = found_pin(&environment).unwrap_err();
        assert!(matches!(error.looked_at[0].1, TrustFileError::Malformed { .. }), "{error}");
        fs::write(&path, vec![b' '; 5000]).unwrap();
        let error = found_pin(&environment).unwrap_err();
        assert!(matches!(error.looked_at[0].1, TrustFileError::Malformed { .. }), "{error}");
    }

    #[test]
    fn the_error_names_every_place_and_the_options() {
        let folder = tempfile::tempdir().unwrap();
        let environment = environment(folder.path());
        let text = found_pin(&environment).unwrap_err().to_string();
        for place in environment.candidates(PORT) {
            assert!(text.contains(&place.display().to_string()), "{text}");
        }
        assert!(text.contains("--server tidelog://127.0.0.1:7440?pin=") && text.contains("--ca"), "{text}");
    }

    #[test]
    fn a_written_file_is_private_and_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/broker.json");
        file(1).write(&path).unwrap();
        file(2).write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
        let text = fs::read_to_string(&path).unwrap();
        let pin = "02".repeat(32);
        assert_eq!(text, format!("{{\"address\":\"127.0.0.1:7440\",\"pin\":\"{pin}\",\"pid\":123}}\n"));
    }

    #[test]
    fn only_the_own_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.json");
        file(2).write(&path).unwrap();
        file(1).remove(&path).unwrap();
        assert!(path.exists());
        file(2).remove(&path).unwrap();
        assert!(!path.exists());
        file(2).remove(&path).unwrap();
    }
}
