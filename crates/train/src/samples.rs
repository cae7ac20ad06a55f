//! Items of a data set become samples: decoded and tokenised in parallel, a lost modality left out.
use rayon::prelude::*;

use super::dataset::{Dataset, DatasetError};
use super::missing::MissingTable;
use delo_model::input::{InputError, InputProcessor, Presence, Sample};

/// The samples of the items at `rows`, in that order, each with what `missing` leaves it.
///
/// # Errors
/// [`DatasetError::Sample`] names the item whose picture or text cannot be read.
pub fn samples(data: &Dataset, rows: &[usize], missing: &MissingTable, processor: &InputProcessor) -> Result<Vec<Sample>, DatasetError> {
    rows.par_iter().map(|&row| sample(data, row, missing.presence(data, row), processor)).collect()
}

fn sample(data: &Dataset, row: usize, presence: Presence, processor: &InputProcessor) -> Result<Sample, DatasetError> {
    let item = &data.items[row];
    let picture = || std::fs::read(data.image_path(item)).map_err(|e| data.sample_error(row, &e));
    let made = match presence {
        Presence::Complete => processor.sample(Some(&picture()?), Some(&item.text)),
        Presence::ImageOnly => processor.sample(Some(&picture()?), None),
        Presence::TextOnly => match processor.sample(None, Some(&item.text)) {
            // A text without a single token can't be what is kept.
            Err(InputError::NoWord) => processor.sample(Some(&picture()?), None),
            made => made,
        },
    };
    made.map_err(|e| data.sample_error(row, &e))
}
