//! The data set and the missing modalities of a command.
use std::path::PathBuf;

use super::Failure;
use super::choice::choice;
use delo_train::{Dataset, MissingKind, MissingTable};

/// A data set in the layout of METHOD.md 6, and which of its items lose a modality.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// A folder with one list of items (*.json: task_id, split, image, text, label, optionally group), optionally
    /// labels.json, and images/
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Share of each task's and split's items that lose a modality
    #[arg(long, value_name = "SHARE", default_value_t = 0.7)]
    pub eta: f64,
    /// The modality that is lost; both: half of these items lose the image, the others the text
    #[arg(long, default_value_t = MissingKind::Both, value_parser = choice::<MissingKind>(&[
        ("text", ""),
        ("image", ""),
        ("both", "Half of the chosen items lose the image, the others the text"),
    ]))]
    pub missing: MissingKind,
    /// A stored missing table; --eta, --missing and --seed then do not choose the items
    #[arg(long, value_name = "FILE")]
    pub missing_table: Option<PathBuf>,
    /// Read [SEP], [PAD] and the like in texts as the special tokens that they name, as transformers does;
    /// they are words of a text otherwise. The partition says which, and goes with servers that read texts
    /// alike (input.special_tokens)
    #[arg(long)]
    pub special_tokens: bool,
    /// Decides all that is random: the missing table and, in training, start, order and hidden modalities
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl DataArgs {
    /// Reads the data set, and reads or draws its missing table.
    pub fn open(&self) -> Result<(Dataset, MissingTable), Failure> {
        let data = Dataset::open(&self.data)?;
        let missing = match &self.missing_table {
            Some(path) => MissingTable::read(path, &data)?,
            None => MissingTable::draw(&data, self.eta, self.missing, self.seed).map_err(Failure::usage)?,
        };
        Ok((data, missing))
    }
}
