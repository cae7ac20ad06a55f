//! Matrices of a forward: rows that start on cache lines, and views of which several threads write disjoint
//! parts.
use std::marker::PhantomData;
use std::ops::Range;

use aligned_vec::{AVec, ConstAlign};

use super::micro::add_rows;
use super::{Isa, Number, PANEL};

/// Bytes of a cache line, and of the widest vector register.
pub(super) const LINE: usize = 64;

/// A row-major matrix `[rows, width]`. Each row starts on a cache line and is followed by zeros to the end of
/// its last line, since products read whole steps of k. Rows stand an odd number of lines apart, so that they
/// do not fall on each other in the cache.
#[derive(Debug)]
pub struct Matrix<T: Number> {
    values: AVec<T, ConstAlign<LINE>>,
    rows: usize,
    width: usize,
    stride: usize,
}

impl<T: Number> Default for Matrix<T> {
    fn default() -> Self {
        Self::zeros(0, 1)
    }
}

impl<T: Number> Matrix<T> {
    /// A matrix of zeros.
    pub fn zeros(rows: usize, width: usize) -> Self {
        let mut matrix = Self { values: AVec::new(LINE), rows: 0, width: 0, stride: 0 };
        matrix.reshape(rows, width);
        matrix
    }

    /// Makes it `[rows, width]`, keeping the memory it has. Afterwards the rows hold any numbers, followed by
    /// zeros.
    pub fn reshape(&mut self, rows: usize, width: usize) {
        let lanes = LINE / size_of::<T>();
        let stride = (width.div_ceil(lanes) | 1) * lanes;
        if self.stride != stride || self.width != width {
            self.values.clear();
            (self.width, self.stride) = (width, stride);
        }
        // Rows that stay were written up to `width` only; added ones are zero.
        self.values.resize(rows * stride, T::default());
        self.rows = rows;
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row, `[width]`.
    pub fn row(&self, row: usize) -> &[T] {
        &self.values[row * self.stride..row * self.stride + self.width]
    }

    /// One row, to change.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.values[row * self.stride..row * self.stride + self.width]
    }

    /// Becomes a copy of the chosen rows of another matrix, in that order.
    pub fn gather(&mut self, from: RowsRef<'_, T>, rows: impl ExactSizeIterator<Item = usize>) {
        self.reshape(rows.len(), from.width());
        rows.enumerate().for_each(|(to, row)| self.row_mut(to).copy_from_slice(from.row(row)));
    }

    /// A copy of the chosen rows of another matrix, in that order.
    pub fn of_rows(from: RowsRef<'_, T>, rows: impl ExactSizeIterator<Item = usize>) -> Self {
        let mut gathered = Self::default();
        gathered.gather(from, rows);
        gathered
    }

    /// The numbers of all rows, one row after another.
    pub fn to_vec(&self) -> Vec<T> {
        (0..self.rows).flat_map(|row| self.row(row).iter().copied()).collect()
    }

    /// All rows, to read.
    pub fn view(&self) -> RowsRef<'_, T> {
        RowsRef { values: &self.values, rows: self.rows, width: self.width, stride: self.stride }
    }

    /// All rows, to write from several threads.
    pub fn view_mut(&mut self) -> RowsMut<'_, T> {
        RowsMut {
            len: self.values.len(),
            values: self.values.as_mut_ptr(),
            rows: self.rows,
            width: self.width,
            stride: self.stride,
            lifetime: PhantomData,
        }
    }
}

/// Rows to read: a view of a [`Matrix`] or of a slice.
#[derive(Clone, Copy, Debug)]
pub struct RowsRef<'a, T> {
    values: &'a [T],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a, T: Number> RowsRef<'a, T> {
    /// Rows of `width` numbers, `stride` apart.
    ///
    /// # Panics
    /// Where the slice is too short.
    pub fn new(values: &'a [T], rows: usize, width: usize, stride: usize) -> Self {
        assert!(
            rows == 0 || (rows - 1) * stride + width <= values.len(),
            "{rows} rows of {width}, {stride} apart, in {} values",
            values.len()
        );
        Self { values, rows, width, stride }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Numbers from the start of one row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// One row, `[width]`.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [T] {
        &self.values[row * self.stride..row * self.stride + self.width]
    }

    /// The same rows from one column on; what follows a row's last column may be read, as far as the buffer
    /// goes.
    ///
    /// # Panics
    /// Outside the view.
    pub fn columns(&self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.width);
        Self { values: self.values.get(columns.start..).unwrap_or_default(), width: columns.len(), ..*self }
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// Outside the view.
    pub fn range(&self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.rows);
        Self { values: &self.values[(rows.start * self.stride).min(self.values.len())..], rows: rows.len(), ..*self }
    }

    /// All numbers from the first row's first on.
    pub fn values(&self) -> &'a [T] {
        self.values
    }

    /// All numbers that may be read from a row's first on.
    pub(super) fn readable_from(&self, row: usize) -> &'a [T] {
        &self.values[row * self.stride..]
    }
}

/// Rows that several threads write at once, each its own part.
#[derive(Debug)]
pub struct RowsMut<'a, T> {
    values: *mut T,
    len: usize,
    rows: usize,
    width: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`; every access asks its callers for disjoint parts.
unsafe impl<T: Send> Send for RowsMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for RowsMut<'_, T> {}

impl<'a, T> RowsMut<'a, T> {
    /// Rows of `width` numbers, `stride` apart.
    ///
    /// # Panics
    /// Where the slice is too short or rows would overlap.
    pub fn new(values: &'a mut [T], rows: usize, width: usize, stride: usize) -> Self {
        assert!(width <= stride && (rows == 0 || (rows - 1) * stride + width <= values.len()));
        Self { len: values.len(), values: values.as_mut_ptr(), rows, width, stride, lifetime: PhantomData }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Some columns of one row.
    ///
    /// # Safety
    /// No two threads hold parts that overlap at the same time.
    ///
    /// # Panics
    /// Outside the view.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn part(&self, row: usize, columns: Range<usize>) -> &'a mut [T] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.width, "outside the rows");
        // SAFETY: in bounds of the slice that the constructors checked; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.stride + columns.start), columns.len()) }
    }

    /// Whole rows of a [`Matrix`], including what follows their last column.
    ///
    /// # Safety
    /// As [`Self::part`].
    ///
    /// # Panics
    /// Outside the view, or where the last row is cut short.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn whole(&self, rows: Range<usize>) -> WholeRows<'a, T> {
        assert!(rows.start <= rows.end && rows.end <= self.rows && rows.end * self.stride <= self.len, "outside the rows");
        // SAFETY: as in `part`.
        let values = unsafe { std::slice::from_raw_parts_mut(self.values.add(rows.start * self.stride), rows.len() * self.stride) };
        WholeRows { values, rows: rows.len(), width: self.width, stride: self.stride }
    }
}

impl RowsMut<'_, f32> {
    /// Adds a panel's rows of results to the rows from `to` on, from `column` on.
    ///
    /// # Safety
    /// As [`Self::part`], and the processor has the instructions `isa`.
    ///
    /// # Panics
    /// Outside the view.
    #[inline(always)]
    pub unsafe fn add(&self, isa: Isa, results: &[[f32; PANEL]], to: usize, column: usize) {
        assert!(to + results.len() <= self.rows && column + PANEL <= self.width, "outside the rows");
        // SAFETY: in bounds; disjoint by the caller's promise.
        unsafe { add_rows(isa, results, self.values.add(to * self.stride + column), self.stride) };
    }
}

/// Neighbouring rows that one thread writes and then reads.
#[derive(Debug)]
pub struct WholeRows<'a, T> {
    values: &'a mut [T],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<T: Number> WholeRows<'_, T> {
    /// One row, to change.
    #[inline(always)]
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.values[row * self.stride..row * self.stride + self.width]
    }

    /// All numbers, including what follows each row.
    pub fn values_mut(&mut self) -> &mut [T] {
        self.values
    }

    /// The rows, to read.
    pub fn view(&self) -> RowsRef<'_, T> {
        RowsRef::new(self.values, self.rows, self.width, self.stride)
    }
}
