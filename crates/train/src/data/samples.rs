//! Items of a data set become samples when they are asked for: decoded and tokenised in parallel, a lost
//! modality left out. None is kept, so that memory does not grow with the number of items.

use std::ops::Range;

use rayon::prelude::*;

use super::dataset::{Dataset, DatasetError};
use super::missing::MissingTable;
use delo_model::input::{InputError, InputProcessor, Presence, Sample};

/// The samples of some items of a data set. Every call reads and decodes the files that it needs.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    data: &'a Dataset,
    /// Indices in [`Dataset::items`].
    rows: &'a [usize],
    missing: &'a MissingTable,
    processor: &'a InputProcessor,
}

impl<'a> Samples<'a> {
    /// The samples of the items at `rows`, in that order, each with what `missing` leaves it.
    pub fn new(data: &'a Dataset, rows: &'a [usize], missing: &'a MissingTable, processor: &'a InputProcessor) -> Self {
        Self { data, rows, missing, processor }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The samples at these positions, in that order. It blocks on files, and decodes on the compute pool.
    ///
    /// # Errors
    /// [`DatasetError::Sample`] names the item whose image or text cannot be read.
    pub fn read(&self, positions: &[usize]) -> Result<Vec<Sample>, DatasetError> {
        positions.par_iter().map(|&position| self.sample(self.rows[position])).collect()
    }

    /// Calls `work` with the samples of each chunk of at most `size` positions, in order; the next chunk is
    /// decoded meanwhile. At most two chunks are held.
    ///
    /// # Errors
    /// As [`Self::read`], and those of `work`; the first of them ends the walk.
    pub fn for_each_chunk<E: From<DatasetError>>(
        &self,
        size: usize,
        mut work: impl FnMut(Range<usize>, &[Sample]) -> Result<(), E>,
    ) -> Result<(), E> {
        let chunks = (0..self.len()).step_by(size).map(|start| start..self.len().min(start + size));
        let read = |chunk: &Range<usize>| self.read(&chunk.clone().collect::<Vec<_>>());
        read_ahead(chunks, read, |chunk, samples| work(chunk, &samples))
    }

    fn sample(&self, row: usize) -> Result<Sample, DatasetError> {
        let item = &self.data.items[row];
        let image = || std::fs::read(self.data.image_path(item)).map_err(|e| self.data.sample_error(row, &e));
        let made = match self.missing.presence(self.data, row) {
            Presence::Complete => self.processor.sample(Some(&image()?), Some(&item.text)),
            Presence::ImageOnly => self.processor.sample(Some(&image()?), None),
            Presence::TextOnly => match self.processor.sample(None, Some(&item.text)) {
                // The image is kept where the text has no token: a sample has at least one modality.
                Err(InputError::NoWord) => self.processor.sample(Some(&image()?), None),
                made => made,
            },
        };
        made.map_err(|e| self.data.sample_error(row, &e))
    }
}

/// Calls `work` on this thread with each part and what `read` makes of it, in order. While `work` runs, the
/// next part is read on the compute pool. At most two parts are held.
///
/// # Errors
/// Those of `read` and `work`; the first of them ends the walk.
pub(crate) fn read_ahead<P: Sync, T: Send, E: From<DatasetError>>(
    parts: impl IntoIterator<Item = P>,
    read: impl Fn(&P) -> Result<T, DatasetError> + Sync,
    mut work: impl FnMut(P, T) -> Result<(), E>,
) -> Result<(), E> {
    let mut parts = parts.into_iter();
    let mut ready = parts.next().map(|part| (read(&part), part));
    while let Some((contents, part)) = ready {
        let contents = contents?;
        let next = parts.next();
        let mut read_meanwhile = None;
        let done = rayon::in_place_scope(|scope| {
            if let Some(next) = &next {
                scope.spawn(|_| read_meanwhile = Some(read(next)));
            }
            work(part, contents)
        });
        done?;
        ready = read_meanwhile.zip(next);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn unreadable(path: usize) -> DatasetError {
        DatasetError::NoList(path.to_string().into())
    }

    #[test]
    fn parts_come_in_order_and_two_are_held_at_most() {
        let (read, mut worked) = (AtomicUsize::new(0), Vec::new());
        let reading = |part: &usize| {
            read.fetch_add(1, Ordering::SeqCst);
            Ok(10 * part)
        };
        read_ahead::<_, _, DatasetError>(0..5, reading, |part, contents| {
            assert!(read.load(Ordering::SeqCst) <= worked.len() + 2);
            worked.push((part, contents));
            Ok(())
        })
        .unwrap();
        assert_eq!(worked, [(0, 0), (1, 10), (2, 20), (3, 30), (4, 40)]);
    }

    #[test]
    fn the_first_error_ends_the_walk() {
        let mut worked = Vec::new();
        let reading = |part: &usize| if *part == 2 { Err(unreadable(2)) } else { Ok(()) };
        let error = read_ahead::<_, _, DatasetError>(0..5, reading, |part, ()| {
            worked.push(part);
            Ok(())
        });
        assert!(matches!(error, Err(DatasetError::NoList(path)) if path == std::path::Path::new("2")));
        assert_eq!(worked, [0, 1]);

        let mut worked = Vec::new();
        let error = read_ahead(
            0..5,
            |_| Ok(()),
            |part, ()| {
                worked.push(part);
                if part == 1 { Err(unreadable(1)) } else { Ok(()) }
            },
        );
        assert!(error.is_err());
        assert_eq!(worked, [0, 1]);
    }
}
