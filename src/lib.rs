//! delo: task-agnostic inference and offline training of DeLo low-rank expert partitions on a frozen ViLT.
//!
//! The house, in the order of its one-way dependencies:
//! - [`allocator`]: how glibc's allocator is kept from holding freed memory.
//! - [`file_size`]: what happens at the process's limit of the size of a file.
//! - [`model_dir`]: a Hugging Face checkpoint directory, on disk or embedded in the binary.
//! - [`input`]: an image or a text from outside becomes a [`input::Sample`].
//! - [`kernels`]: the arithmetic of a forward on a CPU, per set of vector instructions.
//! - [`vilt`]: the frozen backbone; knows nothing of DeLo.
//! - [`delo`]: the method: factor pools, routing, task keys, and the partition artifact.
//! - [`engine`]: many samples of many tasks become one packed batch and one forward.
//! - [`train`]: objective, optimiser, schedule, data sets; produces a partition.
//! - [`eval`]: AP, FG and routing accuracy of partitions on a data set.
//! - [`registry`]: which partitions are live, on trial and retained, durably; where they come from, and who vouches for them.
//! - [`config`]: layered settings.
//! - [`logging`]: the log of a server, best effort.
//! - [`serve`]: gRPC services, the policies around every call, queue and batcher, feedback, metrics, lifecycle.
//! - [`cli`]: the command line; parses, calls one function of the rooms above, prints.

pub mod allocator;
pub mod cli;
pub mod config;
pub mod delo;
pub mod engine;
pub mod eval;
pub mod file_size;
pub mod input;
pub mod kernels;
pub mod logging;
pub mod model_dir;
pub mod registry;
pub mod serve;
pub mod train;
pub mod vilt;
