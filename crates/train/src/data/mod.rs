//! What a data set is, and what is made of it for training and evaluation alike: items, the modalities that
//! they lose, the samples that they become, and scores of predictions (METHOD.md 6).

pub mod classes;
pub mod dataset;
pub mod missing;
pub mod samples;
pub mod score;

mod list;
mod names;
mod share;

pub use classes::ClassSet;
pub use dataset::{Dataset, DatasetError, Item, Label, Split, Task};
pub use missing::{MissingError, MissingKind, MissingTable};
pub use samples::Samples;
pub use score::{ByPattern, Tally, predict, score};
