//! Reading a file that an operator named, without being fooled by what stands there (traps L3).

use std::{
    fmt,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, fstat, memfd_create, open};
use tempfile::NamedTempFile;

/// Puts a file there whole, or leaves what was there: written beside it, synced, and moved over it. Mode 0600.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    // The name is as safe as the content only when its folder is.
    File::open(folder)?.sync_all()
}

/// Why a file was not read. The text ends with the cure.
#[derive(Debug)]
pub enum ReadError {
    Open(io::Error),
    NotAFile(&'static str),
    TooLarge { size: u64, limit: u64 },
    Read(io::Error),
}

/// A file without a place, which is gone with its last descriptor. Its name is for those who look at `/proc`.
pub fn in_memory(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// The whole of a regular file of at most `limit` bytes.
///
/// Opened once, without blocking on a FIFO, judged by its descriptor and read from that descriptor.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let descriptor = open(path, flags, Mode::empty()).map_err(|error| ReadError::Open(error.into()))?;
    let stat = fstat(&descriptor).map_err(|error| ReadError::Open(error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(ReadError::NotAFile("a directory")),
        FileType::Fifo => return Err(ReadError::NotAFile("a FIFO")),
        FileType::Socket => return Err(ReadError::NotAFile("a socket")),
        _ => return Err(ReadError::NotAFile("a device")),
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size > limit {
        return Err(ReadError::TooLarge { size, limit });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // One byte more than allowed, so that a file that grows while it is read is noticed.
    let read = File::from(descriptor).take(limit + 1).read_to_end(&mut bytes).map_err(ReadError::Read)?;
    if read as u64 > limit {
        return Err(ReadError::TooLarge { size: read as u64, limit });
    }
    Ok(bytes)
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) if error.kind() == io::ErrorKind::NotFound => f.write_str("there is no such file"),
            Self::Open(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                f.write_str("this user may not read it (permission denied)")
            }
            Self::Open(error) => write!(f, "it cannot be opened: {error}"),
            Self::NotAFile(what) => write!(f, "it is {what}, not a regular file"),
            Self::TooLarge { size, limit } => {
                write!(f, "it has {} MiB; at most {} MiB are read", size >> 20, limit >> 20)
            }
            Self::Read(error) => write!(f, "it cannot be read: {error}"),
        }
    }
}

impl std::error::Error for ReadError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l3_only_a_regular_file_within_the_limit_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"12345").unwrap();
        assert_eq!(read_bounded(&file, 5).unwrap(), b"12345");
        assert!(matches!(read_bounded(&file, 4), Err(ReadError::TooLarge { .. })));
        assert!(matches!(read_bounded(folder.path(), 5), Err(ReadError::NotAFile("a directory"))));
        assert!(matches!(read_bounded(&folder.path().join("none"), 5), Err(ReadError::Open(_))));
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(read_bounded(&fifo, 5), Err(ReadError::NotAFile("a FIFO"))));
    }
}
