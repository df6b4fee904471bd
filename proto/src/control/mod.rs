//! The conversation with control, without its network: what answers mean, when to ask again, what a map stream brings.

mod answer;
mod backoff;
mod c2n;
mod compression;
mod frames;
mod registration;
mod retry_after;
mod server_key;
mod session;
mod standing;
mod updates;

pub use answer::{AnswerError, RegisterOutcome, judge_status, printable, register_outcome};
pub use backoff::Backoff;
pub use c2n::{PingAnswer, answer_ping};
pub use compression::{CompressionError, decompress};
pub use frames::{FrameError, MAX_DECODED_MESSAGE, MAX_WIRE_MESSAGE, MapFrames, write_frame};
pub use registration::{Claim, Entry, Means, RegisterError, Registered, Registration, Step};
pub use retry_after::http_date;
pub use server_key::read_server_key;
pub use session::{MapError, MapSession, Message, WATCHDOG};
pub use standing::{Standing, standing, time_left};
pub use updates::LiteUpdates;

#[cfg(test)]
mod any_bytes;
#[cfg(test)]
mod tests;
