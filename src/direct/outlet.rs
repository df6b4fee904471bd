//! The server's way out: frames of what a program says, and of how it ended.

use std::io;
use std::ops::Range;
use std::time::Duration;

use nixtail_proto::direct::{self, HEADER_LENGTH, MAX_PAYLOAD, Output, RefusalKind, output_header};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

/// A frame of output with its header: one chunk of a tunnel's stream.
const FRAME: usize = MAX_PAYLOAD;

/// Stderr is for people; a screenful at once is enough.
const ERRORS_FRAME: usize = 4 * 1024;

/// How long a pipe may stay open and silent after the program's end, because something that left its group holds it.
const SILENCE_AFTER_EXIT: Duration = Duration::from_secs(5);

/// How often a quiet program's client is looked after: one that has gone is found in this time even while the program
/// neither reads nor writes.
const LOOK_AFTER_CLIENT: Duration = Duration::from_secs(5);

/// Writes frames. What was begun of one is kept when a call is cancelled, and goes out before anything else: the next frame
/// never lands within it.
pub(super) struct Outlet<W> {
    writer: W,
    data: Vec<u8>,
    errors: Vec<u8>,
    begun: Option<(Output, Range<usize>)>,
    /// Bytes of output that went out.
    sent: u64,
}

impl<W: AsyncWrite + Unpin> Outlet<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer, data: Vec::new(), errors: Vec::new(), begun: None, sent: 0 }
    }

    /// Bytes of output that went out, stderr included.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Lets the client in.
    pub(super) async fn accept(&mut self) -> io::Result<()> {
        self.writer.write_all(&direct::accepted()).await
    }

    /// Turns the client away; nothing can follow.
    pub(super) async fn refuse(&mut self, kind: RefusalKind, words: &str) -> io::Result<()> {
        self.writer.write_all(&direct::refused(kind, words)).await?;
        self.writer.shutdown().await
    }

    /// Says how it ended; nothing can follow.
    pub(super) async fn end(&mut self, code: u32, words: &str) -> io::Result<()> {
        self.finish_begun().await?;
        self.writer.write_all(&direct::ended(code, words)).await?;
        self.writer.shutdown().await
    }

    /// Sends bytes that are there already.
    pub(super) async fn send(&mut self, output: Output, bytes: &[u8]) -> io::Result<()> {
        let length = self.buffer(output).len() - HEADER_LENGTH;
        for piece in bytes.chunks(length) {
            let buffer = self.buffer(output);
            buffer.get_mut(HEADER_LENGTH..HEADER_LENGTH + piece.len()).unwrap_or_default().copy_from_slice(piece);
            self.begin(output, piece.len());
            self.finish_begun().await?;
        }
        Ok(())
    }

    /// Sends what both pipes give, until both have ended or are long silent after `exited`. Cancel safe.
    ///
    /// # Errors
    /// When the client has gone.
    pub(super) async fn pump(
        &mut self,
        mut stdout: impl AsyncRead + Unpin,
        mut stderr: Option<impl AsyncRead + Unpin>,
        exited: &CancellationToken,
        mut look: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut stdout_open = true;
        self.buffer(Output::Data);
        self.buffer(Output::Stderr);
        while stdout_open || stderr.is_some() {
            let (data, errors) = (self.data.get_mut(HEADER_LENGTH..), self.errors.get_mut(HEADER_LENGTH..));
            let (data, errors) = (data.unwrap_or_default(), errors.unwrap_or_default());
            let from_stderr = async {
                match &mut stderr {
                    Some(stderr) => stderr.read(errors).await,
                    None => std::future::pending().await,
                }
            };
            let silence = async {
                exited.cancelled().await;
                tokio::time::sleep(SILENCE_AFTER_EXIT).await;
            };
            let (output, read) = tokio::select! {
                biased;
                read = stdout.read(data), if stdout_open => (Output::Data, read),
                read = from_stderr => (Output::Stderr, read),
                () = silence => return Ok(()),
                () = tokio::time::sleep(LOOK_AFTER_CLIENT) => {
                    self.writer.flush().await?;
                    continue;
                }
            };
            match (output, read) {
                (Output::Data, Ok(0) | Err(_)) => stdout_open = false,
                (Output::Stderr, Ok(0) | Err(_)) => stderr = None,
                (_, Ok(length)) => {
                    if output == Output::Data {
                        look(self.data.get(HEADER_LENGTH..HEADER_LENGTH + length).unwrap_or_default());
                    }
                    self.begin(output, length);
                    self.finish_begun().await?;
                }
            }
        }
        Ok(())
    }

    fn buffer(&mut self, output: Output) -> &mut Vec<u8> {
        let (buffer, length) = match output {
            Output::Data => (&mut self.data, FRAME),
            Output::Stderr => (&mut self.errors, ERRORS_FRAME),
        };
        buffer.resize(length, 0);
        buffer
    }

    /// The `length` bytes behind the header in a buffer are the next frame.
    fn begin(&mut self, output: Output, length: usize) {
        let header = output_header(output, length);
        self.buffer(output).get_mut(..HEADER_LENGTH).unwrap_or_default().copy_from_slice(&header);
        self.begun = Some((output, 0..HEADER_LENGTH + length));
        self.sent += length as u64;
    }

    async fn finish_begun(&mut self) -> io::Result<()> {
        let Self { writer, data, errors, begun, .. } = self;
        while let Some((output, left)) = begun {
            let buffer = match output {
                Output::Data => &*data,
                Output::Stderr => &*errors,
            };
            let rest = buffer.get(left.clone()).unwrap_or_default();
            if rest.is_empty() {
                *begun = None;
                continue;
            }
            match writer.write(rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => left.start += written,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nixtail_proto::direct::{Decoder, Event};

    use super::*;

    #[tokio::test]
    async fn an_end_after_a_cancelled_pump_lands_behind_the_frame_that_was_begun() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut outlet = Outlet::new(near);
        outlet.accept().await.unwrap();
        let much = vec![b'x'; 30_000];
        // The far end reads nothing yet, so that this stops in mid-frame.
        let exited = CancellationToken::new();
        let pump = outlet.pump(much.as_slice(), None::<tokio::io::Empty>, &exited, |_| ());
        assert!(tokio::time::timeout(Duration::from_millis(50), pump).await.is_err());
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.map(|_| all)
        });
        outlet.end(9, "revoked").await.unwrap();
        drop(outlet);
        let all = reading.await.unwrap().unwrap();
        let (mut decoder, mut rest, mut length, mut ended) = (Decoder::new(), all.as_slice(), 0, None);
        while let Some(event) = decoder.next_event(&mut rest).unwrap() {
            match event {
                Event::Output(Output::Data, bytes) => length += bytes.len(),
                Event::Ended(code, words) => ended = Some((code, words)),
                _ => {}
            }
        }
        assert_eq!((length, ended), (much.len(), Some((9, "revoked".to_owned()))));
    }

    #[tokio::test]
    async fn both_outputs_are_told_apart_and_of_any_length() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut outlet = Outlet::new(near);
        outlet.accept().await.unwrap();
        let mut seen = 0;
        let (data, errors) = (vec![1; 200_000], vec![2; 10_000]);
        let exited = CancellationToken::new();
        outlet.pump(data.as_slice(), Some(errors.as_slice()), &exited, |bytes| seen += bytes.len()).await.unwrap();
        outlet.send(Output::Data, &vec![1; 100_000]).await.unwrap();
        outlet.end(0, "").await.unwrap();
        assert_eq!((outlet.sent(), seen), (310_000, 200_000));
        drop(outlet);
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        let (mut decoder, mut rest, mut got) = (Decoder::new(), all.as_slice(), [0, 0]);
        while let Some(event) = decoder.next_event(&mut rest).unwrap() {
            match event {
                Event::Output(Output::Data, bytes) => got[0] += bytes.iter().filter(|byte| **byte == 1).count(),
                Event::Output(Output::Stderr, bytes) => got[1] += bytes.iter().filter(|byte| **byte == 2).count(),
                _ => {}
            }
        }
        assert_eq!(got, [300_000, 10_000]);
        assert!(decoder.is_over());
    }
}
