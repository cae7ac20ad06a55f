//! Small products of operands that change, such as factors in training: a safe interface to the `gemm` crate.
//! Operands are strided views whose bounds are checked once; a product runs on the calling thread.
use delo_kernels::RowsRef;
use gemm::Parallelism;

/// A slice read as a matrix with two strides; its transpose is such a view too.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// A slice as a row-major matrix to which a product is written.
pub struct StridedMut<'a> {
    values: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

/// One past the last index that a view of this shape touches.
fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 }
}

impl<'a> Strided<'a> {
    /// A row-major view; each row starts `row_stride` numbers after the one before.
    ///
    /// # Panics
    /// If the slice is too short for the shape.
    pub fn new(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(extent(rows, columns, row_stride, 1) <= values.len(), "a {rows} × {columns} view does not fit {} values", values.len());
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose; copies nothing.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// The same rows.
impl<'a> From<RowsRef<'a, f32>> for Strided<'a> {
    fn from(rows: RowsRef<'a, f32>) -> Self {
        Self::new(rows.values(), rows.rows(), rows.width(), rows.stride())
    }
}

impl<'a> StridedMut<'a> {
    /// A row-major view; each row starts `row_stride` numbers after the one before.
    ///
    /// # Panics
    /// If the slice is too short for the shape, or rows would overlap.
    pub fn new(values: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(extent(rows, columns, row_stride, 1) <= values.len(), "a {rows} × {columns} view does not fit {} values", values.len());
        assert!(rows <= 1 || columns <= row_stride, "rows of a product's target must not overlap");
        Self { values, rows, columns, row_stride }
    }
}

/// Whether a product replaces the values of its target or is added to them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Assign {
    Overwrite,
    Add,
}

/// `target = scale · lhs · rhs`, or `target += scale · lhs · rhs`, on this thread.
///
/// # Panics
/// If the shapes do not agree.
pub fn product(out: StridedMut<'_>, assign: Assign, scale: f32, lhs: Strided<'_>, rhs: Strided<'_>) {
    assert_eq!((lhs.rows, lhs.columns, rhs.columns), (out.rows, rhs.rows, out.columns), "shapes of a product");
    // SAFETY: the constructors checked that every index of these shapes and strides lies within its slice,
    // the target is borrowed mutably, so it overlaps neither operand, and its own rows do not overlap.
    unsafe {
        gemm::gemm(
            out.rows,
            out.columns,
            lhs.columns,
            out.values.as_mut_ptr(),
            1,
            out.row_stride as isize,
            assign == Assign::Add,
            lhs.values.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.values.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_equal_the_definition(m in 1usize..9, k in 0usize..9, n in 1usize..9, pad in 0usize..3, add: bool, transposed: bool) {
            let number = |i: usize| ((i * 37 + 11) % 17) as f32 - 8.0;
            let a: Vec<f32> = (0..m * (k + pad)).map(number).collect();
            let b: Vec<f32> = (0..(k.max(n) + pad) * (k.max(n) + pad)).map(number).collect();
            let mut out: Vec<f32> = (0..m * (n + pad)).map(number).collect();
            let before = out.clone();
            let at = |i: usize, j: usize| if transposed { b[j * (k + pad) + i] } else { b[i * (n + pad) + j] };
            let rhs = if transposed { Strided::new(&b, n, k, k + pad).t() } else { Strided::new(&b, k, n, n + pad) };
            product(StridedMut::new(&mut out, m, n, n + pad), if add { Assign::Add } else { Assign::Overwrite }, 2.0, Strided::new(&a, m, k, k + pad), rhs);
            for i in 0..m {
                for j in 0..n + pad {
                    let old = before[i * (n + pad) + j];
                    let expected = if j >= n { old } else {
                        let sum: f32 = (0..k).map(|x| a[i * (k + pad) + x] * at(x, j)).sum();
                        2.0 * sum + if add { old } else { 0.0 }
                    };
                    prop_assert_eq!(out[i * (n + pad) + j], expected);
                }
            }
        }
    }
}
