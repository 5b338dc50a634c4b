//! The three descriptors that the command inherits: none may be a way around the capture.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage, getsockname};
use nix::sys::stat::{SFlag, fstat};

/// Refuses standard streams through which a command could leave its namespaces.
///
/// # Errors
/// When one of them is a socket of the network (made outside, it has no hook and belongs to the host's network), or a
/// directory (its neighbours are those of the host's mounts, not of the command's).
pub(super) fn check() -> anyhow::Result<()> {
    let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [
        ("standard input", input.as_fd()),
        ("standard output", output.as_fd()),
        ("standard error", errors.as_fd()),
    ];
    for (name, stream) in streams {
        if let Some(what) = way_out(stream)? {
            anyhow::bail!(
                "{name} is {what}, which the command could use to leave its network or mounts; connect it to a file, \
                 a pipe or a terminal"
            );
        }
    }
    Ok(())
}

fn way_out(stream: BorrowedFd<'_>) -> nix::Result<Option<&'static str>> {
    let kind = SFlag::from_bits_truncate(fstat(stream)?.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFDIR {
        return Ok(Some("a directory"));
    }
    if kind != SFlag::S_IFSOCK {
        return Ok(None);
    }
    let family = getsockname::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(&stream))?.family();
    Ok((family != Some(AddressFamily::Unix)).then_some("a network socket"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn network_sockets_and_directories_are_ways_out_and_files_pipes_and_local_sockets_are_not() {
        let (unix, _peer) = UnixStream::pair().unwrap();
        let (pipe, _writer) = io::pipe().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (file, directory) = (File::open("/dev/null").unwrap(), File::open("/").unwrap());
        assert_eq!(way_out(unix.as_fd()), Ok(None));
        assert_eq!(way_out(pipe.as_fd()), Ok(None));
        assert_eq!(way_out(file.as_fd()), Ok(None));
        assert_eq!(way_out(directory.as_fd()), Ok(Some("a directory")));
        assert_eq!(way_out(listener.as_fd()), Ok(Some("a network socket")));
        assert_eq!(way_out(datagrams.as_fd()), Ok(Some("a network socket")));
    }
}
