//! File systems mounted for one run: in a file, whose disk can be cut off, or in memory. Needs root and the tools of the system.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::failure::Failure;

/// Large enough for either file system, and sparse.
const IMAGE_BYTES: u64 = 512 << 20;

/// Which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    const fn mkfs(self) -> &'static str {
        match self {
            Self::Ext4 => "mkfs.ext4",
            Self::Xfs => "mkfs.xfs",
        }
    }

    /// Why such a file system can't be cut off here, if it can't.
    fn missing(self) -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("mounting needs root".to_owned());
        }
        let absent = [self.mkfs(), "mount", "umount", "xfs_io"].into_iter().find(|tool| !is_installed(tool));
        absent.map(|tool| format!("{tool} is not installed"))
    }
}

/// Why no disk of this kind is cut off in this run, if none is.
pub fn why_not(kind: FileSystem) -> Option<String> {
    match std::env::var("TIDELOG_MOUNT_TESTS").as_deref() {
        Ok("1") => kind.missing(),
        _ => Some("it mounts file systems, which TIDELOG_MOUNT_TESTS=1 has to ask for".to_owned()),
    }
}

fn is_installed(tool: &str) -> bool {
    std::env::split_paths(&path_of_tools()).any(|folder| folder.join(tool).is_file())
}

/// The folders of the system's own tools are not in every user's path.
fn path_of_tools() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// A tool that holds the file system open and waits for the word.
#[derive(Debug)]
pub struct Cutter {
    tool: Option<Child>,
}

impl Cutter {
    /// The power cut: from now on nothing reaches the disk, not even the file system's journal, and what had not reached
    /// it is gone.
    ///
    /// # Errors
    ///
    /// If the file system can't do that.
    pub fn cut(mut self) -> Result<(), Failure> {
        let mut tool = self.tool.take().expect("used once");
        // Without -f: the journal is not flushed first.
        let told = tool.stdin.take().expect("piped").write_all(b"shutdown\n");
        let output = told.and_then(|()| tool.wait_with_output()).map_err(|error| Failure::trouble("xfs_io", error))?;
        match output.status.success() && output.stderr.is_empty() {
            true => Ok(()),
            false => Err(Failure::trouble("cutting the disk off", String::from_utf8_lossy(&output.stderr).trim())),
        }
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        // It would hold the file system.
        if let Some(mut tool) = self.tool.take() {
            let _ = tool.kill().and_then(|()| tool.wait());
        }
    }
}

/// What is mounted; unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    /// None for a file system in memory.
    image: Option<PathBuf>,
    point: PathBuf,
    is_mounted: bool,
}

impl Mount {
    /// Makes an image in `folder` and mounts it there.
    ///
    /// # Errors
    ///
    /// Those of the system's tools.
    pub fn make(folder: &Path, kind: FileSystem) -> Result<Self, Failure> {
        Self::image(&folder.join("disk.image"), IMAGE_BYTES, &folder.join("disk"), kind, &[])
    }

    /// Makes an image of this size, with these further arguments for its maker, and mounts it at `point`.
    ///
    /// # Errors
    ///
    /// Those of the system's tools.
    pub fn image(image: &Path, bytes: u64, point: &Path, kind: FileSystem, make: &[&str]) -> Result<Self, Failure> {
        let made = File::create(image).and_then(|file| file.set_len(bytes)).and_then(|()| fs::create_dir(point));
        made.map_err(|error| Failure::trouble("making the image", error))?;
        let words = make.iter().map(OsStr::new).chain(["-q".as_ref(), image.as_os_str()]);
        run(kind.mkfs(), &words.collect::<Vec<_>>())?;
        let mut mount = Self { image: Some(image.to_owned()), point: point.to_owned(), is_mounted: false };
        mount.mount()?;
        Ok(mount)
    }

    /// A file system in memory with these options, mounted at `point`.
    ///
    /// # Errors
    ///
    /// Those of the system's tools.
    pub fn in_memory(point: &Path, options: &str) -> Result<Self, Failure> {
        fs::create_dir(point).map_err(|error| Failure::trouble(point.display(), error))?;
        run(
            "mount",
            &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), options.as_ref(), "tmpfs".as_ref(), point.as_os_str()],
        )?;
        Ok(Self { image: None, point: point.to_owned(), is_mounted: true })
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.point
    }

    fn mount(&mut self) -> Result<(), Failure> {
        let image = self.image.as_ref().expect("what is in memory is mounted once");
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), self.point.as_os_str()])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Gets ready to cut, so that the cut itself takes no time.
    ///
    /// # Errors
    ///
    /// Those of the system's tools.
    pub fn cutter(&self) -> Result<Cutter, Failure> {
        let mut tool = Command::new("xfs_io");
        tool.arg("-x").arg(&self.point).env("PATH", path_of_tools());
        tool.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let tool = tool.spawn().map_err(|error| Failure::trouble("xfs_io", error))?;
        Ok(Cutter { tool: Some(tool) })
    }

    /// Mounts the file system again after a cut, with what is on the disk. Nobody may have files open there.
    ///
    /// # Errors
    ///
    /// Those of the system's tools.
    pub fn mount_again(&mut self) -> Result<(), Failure> {
        run("umount", &[self.point.as_os_str()])?;
        self.is_mounted = false;
        self.mount()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.is_mounted {
            return;
        }
        // A process that is still ending holds it for a moment; lazily, it goes with the last one.
        let unmounted = run("umount", &[self.point.as_os_str()])
            .or_else(|_| run("umount", &["--lazy".as_ref(), self.point.as_os_str()]));
        if let Err(failure) = unmounted {
            eprintln!("{} is left mounted: {failure}", self.point.display());
        }
    }
}

fn run(tool: &str, arguments: &[&OsStr]) -> Result<(), Failure> {
    output_of(tool, arguments).map(drop)
}

/// What a tool of the system writes.
///
/// # Errors
///
/// Trouble with what it says, if it does not succeed.
pub fn output_of(tool: &str, arguments: &[&OsStr]) -> Result<String, Failure> {
    let output = Command::new(tool).args(arguments).env("PATH", path_of_tools()).output();
    let output = output.map_err(|error| Failure::trouble(tool, error))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Failure::trouble(tool, String::from_utf8_lossy(&output.stderr).trim())),
    }
}
