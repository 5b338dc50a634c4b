//! A stream whose first bytes were read already → the stream as if they had not been.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives back the sniffed bytes first, then reads on from the stream. Writing goes straight through.
#[derive(Debug)]
pub struct Replay<S> {
    prefix: Bytes,
    stream: S,
}

impl<S> Replay<S> {
    /// A stream that yields `prefix` before what `stream` yields.
    pub fn new(prefix: impl Into<Bytes>, stream: S) -> Self {
        Self { prefix: prefix.into(), stream }
    }

    /// The bytes that were not read again yet.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The stream itself, which stands behind the prefix.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The bytes that were not read again yet, and the stream behind them.
    #[must_use]
    pub fn into_parts(self) -> (Bytes, S) {
        (self.prefix, self.stream)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.prefix.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let length = this.prefix.len().min(buf.remaining());
        buf.put_slice(&this.prefix.split_to(length));
        if !this.prefix.has_remaining() {
            // Lets go of the sniffing buffer, which a long connection would hold for nothing.
            this.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn the_prefix_comes_first_whatever_the_size_of_a_read() {
        for size in 1..12 {
            let inner = tokio_test::io::Builder::new().read(b"stream").build();
            let mut replay = Replay::new(b"sniffed ".to_vec(), inner);
            let mut all = Vec::new();
            let mut buffer = vec![0; size];
            loop {
                let length = replay.read(&mut buffer).await.expect("read");
                if length == 0 {
                    break;
                }
                all.extend_from_slice(&buffer[..length]);
            }
            assert_eq!(all, b"sniffed stream", "reads of {size} bytes");
            assert!(replay.prefix().is_empty());
        }
    }

    #[tokio::test]
    async fn writing_goes_straight_through() {
        let inner = tokio_test::io::Builder::new().write(b"answer").build();
        let mut replay = Replay::new(b"sniffed".to_vec(), inner);
        replay.write_all(b"answer").await.expect("write");
        let (prefix, _inner) = replay.into_parts();
        assert_eq!(&prefix[..], b"sniffed");
    }
}
