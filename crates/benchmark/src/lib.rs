//! Tables of methods side by side (METHOD.md 6, 8): a plan in TOML names cells, each a method with its
//! settings, data, missing table and seed; every cell is trained and evaluated in a process of its own, and
//! what it leaves becomes the rows of a table.
//!
//! | module | holds |
//! | --- | --- |
//! | [`plan`] | the plan: its format, and how its lists become cells |
//! | [`cell`] | one cell: all that decides its result |
//! | [`folder`] | what a cell keeps on disk, and when a folder is of another cell |
//! | [`run`] | one cell, trained and evaluated in this process |
//! | [`jobs`] | many cells in processes, a few at a time |
//! | [`result`] | what a finished cell says |
//! | [`rows`] | the cells of a row over their seeds: means, spread, intervals, differences |
//! | [`table`] | the rows as Markdown and JSON |
//! | [`pictures`] | AP of the rows as bars, and against the missing ratio |
//!
//! Invariant: what a cell computes is a function of its configuration, data and backbone. The number of
//! processes and threads, and interruptions, change how long it takes.
#![warn(missing_docs)]

pub mod cell;
pub mod folder;
pub mod jobs;
pub mod pictures;
pub mod plan;
pub mod result;
pub mod rows;
pub mod run;
pub mod table;

mod expansion;
mod processor;

pub use cell::Cell;
pub use folder::{CellFolder, FolderError, State};
pub use plan::{Plan, PlanError};
