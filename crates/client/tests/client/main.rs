//! What the client promises: against a fake server, and against the program itself.

mod answering;
mod connecting;
mod fake;
mod retrying;
mod sending;
mod server;
mod streaming;
