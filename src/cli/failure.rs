//! What a command ends with when it can't do its work.
use std::fmt::Display;
use std::process::ExitCode;

/// Why a command failed; decides its exit code. The message says what to do and is printed as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The command line asks for something that can't be meant: exit code 2.
    Usage(String),
    /// A second signal, of this number, ended a server before it had drained: exit code 128 and the number,
    /// as of a process that the signal killed.
    Signal(u8),
    /// Anything else: exit code 1.
    Other(String),
}

impl Failure {
    /// Wrong usage of the command line.
    pub fn usage(message: impl Display) -> Self {
        Self::Usage(message.to_string())
    }

    /// 2 for wrong usage, 128 and more for a signal, 1 for the rest.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Signal(number) => ExitCode::from(128u8.saturating_add(*number)),
            Self::Other(_) => ExitCode::from(1),
        }
    }

    /// The message on one line, however many the error had, without the backtrace that candle appends where
    /// RUST_BACKTRACE is set.
    pub fn line(&self) -> String {
        let message = match self {
            Self::Usage(message) | Self::Other(message) => message,
            Self::Signal(_) => "ended at once by a second signal: calls in flight were cut off",
        };
        let message = message.split("\n   0: ").next().unwrap_or(message);
        message.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// `?` on any error ends a command with exit code 1. (`Failure` itself isn't `Display`, so this can't collide
/// with `From<Failure>`.)
impl<E: Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.to_string())
    }
}
