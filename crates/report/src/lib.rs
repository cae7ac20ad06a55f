//! Diagnostics of trained partitions on a data set, and pictures of them.
//!
//! | module | holds |
//! | --- | --- |
//! | [`diagnostics`] | numbers that say how partitions work, computed with the engine, as JSON |
//! | [`picture`] | drawing charts and heat maps of plain numbers, as SVG and PNG |
//! | [`figures`] | which pictures there are: of diagnostics, and of reports of several methods |
//! | [`page`] | a folder with the numbers, the pictures, and a page in Markdown that explains them |
//!
//! Invariant: the same partitions, data and seed give the same numbers and the same bytes of every picture.
//! No font of the system is needed.
#![warn(missing_docs)]

pub mod diagnostics;
pub mod figures;
pub mod page;
pub mod picture;

pub use diagnostics::{Diagnostics, diagnose};
pub use figures::Figure;
pub use page::{Page, write};
