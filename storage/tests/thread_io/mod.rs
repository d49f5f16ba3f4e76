//! What the system counts of a thread's reading and writing.

/// `rchar`: bytes asked of files; `syscw`: calls that write; `read_bytes`: bytes that had to come from a disk; `write_bytes`: bytes a disk has to write.
pub(crate) fn thread_io(what: &str) -> u64 {
    let counts = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let count = counts.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
    count.unwrap().parse().unwrap()
}
