//! Buffers of a forward: rows that start on cache lines, and views that several threads write disjoint parts of.
use std::marker::PhantomData;
use std::ops::Range;

use aligned_vec::{AVec, ConstAlign};

use super::micro::add_rows;
use super::{Element, Isa, PANEL};

/// Bytes of a cache line, and of the widest vector register.
const LINE: usize = 64;

/// `[rows, width]` in one number format. Each row starts on a cache line and is followed by zeros: products read whole steps of k, and rows an
/// odd number of lines apart do not fall on each other in the cache.
#[derive(Debug)]
pub struct Stream<E: Element> {
    values: AVec<E, ConstAlign<LINE>>,
    rows: usize,
    width: usize,
    stride: usize,
}

impl<E: Element> Default for Stream<E> {
    fn default() -> Self {
        Self::zeros(0, 1)
    }
}

impl<E: Element> Stream<E> {
    pub fn zeros(rows: usize, width: usize) -> Self {
        let mut stream = Self { values: AVec::new(LINE), rows: 0, width: 0, stride: 0 };
        stream.reshape(rows, width);
        stream
    }

    /// Makes it `[rows, width]`, keeping the memory it has. What rows hold afterwards is not said; the zeros after each row are.
    pub fn reshape(&mut self, rows: usize, width: usize) {
        let lanes = LINE / size_of::<E>();
        let stride = (width.next_multiple_of(E::STEP).div_ceil(lanes) | 1) * lanes;
        if self.stride != stride || self.width != width {
            self.values.clear();
            (self.width, self.stride) = (width, stride);
        }
        // Rows that stay were written up to `width` only, new ones are zero.
        self.values.resize(rows * stride, E::default());
        self.rows = rows;
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn row(&self, row: usize) -> &[E] {
        &self.values[row * self.stride..row * self.stride + self.width]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [E] {
        &mut self.values[row * self.stride..row * self.stride + self.width]
    }

    /// Becomes some rows of another stream, in that order.
    pub fn gather(&mut self, from: RowsRef<'_, E>, rows: impl ExactSizeIterator<Item = usize>) {
        self.reshape(rows.len(), from.width());
        rows.enumerate().for_each(|(to, row)| self.row_mut(to).copy_from_slice(from.row(row)));
    }

    /// Some rows of another stream, in that order.
    pub fn of_rows(from: RowsRef<'_, E>, rows: impl ExactSizeIterator<Item = usize>) -> Self {
        let mut gathered = Self::default();
        gathered.gather(from, rows);
        gathered
    }

    /// The numbers of all rows, one row after another.
    pub fn to_vec(&self) -> Vec<E> {
        (0..self.rows).flat_map(|row| self.row(row).iter().copied()).collect()
    }

    pub fn view(&self) -> RowsRef<'_, E> {
        RowsRef { values: &self.values, rows: self.rows, width: self.width, stride: self.stride }
    }

    pub fn view_mut(&mut self) -> RowsMut<'_, E> {
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

/// Rows to read.
#[derive(Clone, Copy, Debug)]
pub struct RowsRef<'a, E> {
    values: &'a [E],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a, E: Element> RowsRef<'a, E> {
    /// # Panics
    /// Where the slice is too short.
    pub fn new(values: &'a [E], rows: usize, width: usize, stride: usize) -> Self {
        assert!(
            rows == 0 || (rows - 1) * stride + width <= values.len(),
            "{rows} rows of {width}, {stride} apart, in {} values",
            values.len()
        );
        Self { values, rows, width, stride }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [E] {
        &self.values[row * self.stride..row * self.stride + self.width]
    }

    /// The same rows from one column on; what follows a row's last column may be read, as far as the buffer goes.
    pub fn columns(&self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.width);
        Self { values: self.values.get(columns.start..).unwrap_or_default(), width: columns.len(), ..*self }
    }

    /// Some of the rows.
    pub fn range(&self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.rows);
        Self { values: &self.values[(rows.start * self.stride).min(self.values.len())..], rows: rows.len(), ..*self }
    }

    /// All numbers from the first row's first on.
    pub fn values(&self) -> &'a [E] {
        self.values
    }

    /// The first number of a row, and how many may be read from there.
    pub(super) fn readable_from(&self, row: usize) -> &'a [E] {
        &self.values[row * self.stride..]
    }
}

/// Rows that several threads write at once, each its own part.
#[derive(Debug)]
pub struct RowsMut<'a, E> {
    values: *mut E,
    len: usize,
    rows: usize,
    width: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [E]>,
}

// SAFETY: it stands for a `&mut [E]`; the only access, `part`, asks its callers for disjoint parts.
unsafe impl<E: Send> Send for RowsMut<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Send> Sync for RowsMut<'_, E> {}

impl<'a, E> RowsMut<'a, E> {
    /// # Panics
    /// Where the slice is too short or rows would overlap.
    pub fn new(values: &'a mut [E], rows: usize, width: usize, stride: usize) -> Self {
        assert!(width <= stride && (rows == 0 || (rows - 1) * stride + width <= values.len()));
        Self { len: values.len(), values: values.as_mut_ptr(), rows, width, stride, lifetime: PhantomData }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

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
    pub unsafe fn part(&self, row: usize, columns: Range<usize>) -> &'a mut [E] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.width, "outside the rows");
        // SAFETY: in bounds of the slice that the constructors checked; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.stride + columns.start), columns.len()) }
    }

    /// Whole rows of a [`Stream`], what follows their last column included.
    ///
    /// # Safety
    /// As [`Self::part`].
    ///
    /// # Panics
    /// Outside the view, or where the last row is cut short.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn whole(&self, rows: Range<usize>) -> WholeRows<'a, E> {
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
pub struct WholeRows<'a, E> {
    values: &'a mut [E],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<E: Element> WholeRows<'_, E> {
    #[inline(always)]
    pub fn row_mut(&mut self, row: usize) -> &mut [E] {
        &mut self.values[row * self.stride..row * self.stride + self.width]
    }

    /// All numbers, what follows each row included.
    pub fn values_mut(&mut self) -> &mut [E] {
        self.values
    }

    pub fn view(&self) -> RowsRef<'_, E> {
        RowsRef::new(self.values, self.rows, self.width, self.stride)
    }
}
