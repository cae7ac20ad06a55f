//! The catalogue owner: holds the live catalogue, and makes one change of it at a time.
//!
//! `start` restores what the state directory holds and loads the first partitions; `change` makes every later
//! change. `opened_state` opens that directory; `candidate` reads, checks and warms up a partition before it
//! is part of a catalogue; `versions` keeps the ledger and the versions that are not in the catalogue.
mod candidate;
mod change;
mod error;
mod opened_state;
mod owner;
mod start;
mod versions;

pub use change::{Changed, Load};
pub use error::ChangeError;
pub use owner::{CatalogueOwner, CatalogueReport, Settings};

#[cfg(test)]
mod tests;
