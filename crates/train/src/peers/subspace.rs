//! Dual gradient projection memory (Liang and Li, CVPR 2023): the subspace in which the inputs of one layer
//! lay in earlier sessions, or its complement where that is smaller.
//!
//! The memory is made of second moments C = Σ x xᵀ of the inputs x, `[d, d]`: the singular vectors of a
//! matrix of inputs are the eigenvectors of its moment, and the squares of its singular values are the
//! eigenvalues.
use faer::{Mat, MatRef, Side};

/// The memory of one layer. The columns are orthonormal, `[d, directions]`.
#[derive(Clone, Debug)]
pub(super) enum Subspace {
    /// The directions that earlier sessions used; at most half of all.
    Used(Mat<f64>),
    /// The directions that they left free; fewer than half of all.
    Free(Mat<f64>),
}

/// The eigenvectors of a symmetric matrix do not converge.
#[derive(Debug, thiserror::Error)]
#[error("the second moment of a layer's inputs has no eigenvectors: a state is not finite")]
pub(super) struct NoEigenvectors;

/// Eigenvalues and eigenvectors of a symmetric matrix, largest first.
fn eigen(matrix: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>), NoEigenvectors> {
    let found = matrix.self_adjoint_eigen(Side::Lower).map_err(|_| NoEigenvectors)?;
    let (d, vectors, values) = (matrix.nrows(), found.U(), found.S().column_vector());
    let falling: Vec<f64> = (0..d).rev().map(|i| values[i].max(0.0)).collect();
    Ok((falling, Mat::from_fn(d, d, |row, column| vectors[(row, d - 1 - column)])))
}

fn trace(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum()
}

impl Subspace {
    /// Nothing is remembered of a layer whose inputs have `d` numbers.
    pub fn empty(d: usize) -> Self {
        Self::Used(Mat::zeros(d, 0))
    }

    /// The moment of the part of the inputs that earlier sessions left free.
    pub fn free_part(&self, moment: &Mat<f64>) -> Mat<f64> {
        match self {
            Self::Used(used) => {
                let rest = Mat::<f64>::identity(moment.nrows(), moment.nrows()) - used * used.transpose();
                &rest * moment * &rest
            }
            Self::Free(free) => {
                let kept = free * free.transpose();
                &kept * moment * &kept
            }
        }
    }

    /// The `count` leading directions of a session's inputs in the free subspace, one a row.
    ///
    /// # Errors
    /// A moment that is not finite.
    pub fn leading(&self, moment: &Mat<f64>, count: usize) -> Result<Vec<Vec<f64>>, NoEigenvectors> {
        let (_, vectors) = eigen(self.free_part(moment).as_ref())?;
        Ok((0..count.min(vectors.ncols())).map(|column| (0..vectors.nrows()).map(|row| vectors[(row, column)]).collect()).collect())
    }

    /// Remembers the inputs of a session: the used directions hold at least the share `energy` of Σ ‖x‖²
    /// afterwards.
    ///
    /// # Errors
    /// A moment that is not finite.
    pub fn remember(&mut self, moment: &Mat<f64>, energy: f64) -> Result<(), NoEigenvectors> {
        let (d, total, free_part) = (moment.nrows(), trace(moment), self.free_part(moment));
        let (values, vectors) = eigen(free_part.as_ref())?;
        let mut left = trace(&free_part);
        let mut added = 0;
        while added < d && left > (1.0 - energy) * total {
            left -= values[added];
            added += 1;
        }
        if added == 0 {
            return Ok(());
        }
        let added = vectors.as_ref().subcols(0, added);
        *self = match &*self {
            Self::Used(used) => {
                let directions = (used.ncols() + added.ncols()).min(d);
                let column = |column: usize| if column < used.ncols() { used.col(column) } else { added.col(column - used.ncols()) };
                let used = Mat::from_fn(d, directions, |row, at| column(at)[row]);
                if 2 * directions <= d {
                    Self::Used(used)
                } else {
                    // What is left: the eigenvectors of I − used usedᵀ with the eigenvalue 1. One direction
                    // stays free, so that the next session can learn.
                    let rest = Mat::<f64>::identity(d, d) - &used * used.transpose();
                    Self::Free(eigen(rest.as_ref())?.1.as_ref().subcols(0, (d - directions).max(1)).to_owned())
                }
            }
            Self::Free(free) => {
                let rest = free - added * (added.transpose() * free);
                let directions = free.ncols().saturating_sub(added.ncols()).max(1);
                Self::Free(eigen((&rest * rest.transpose()).as_ref())?.1.as_ref().subcols(0, directions).to_owned())
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The moment of inputs that lie along the axes, with these energies.
    fn axes(energies: &[f64]) -> Mat<f64> {
        Mat::from_fn(energies.len(), energies.len(), |i, j| if i == j { energies[i] } else { 0.0 })
    }

    fn along(direction: &[f64], axis: usize) -> bool {
        direction.iter().enumerate().all(|(i, x)| (x.abs() - f64::from(u8::from(i == axis))).abs() < 1e-9)
    }

    #[test]
    fn the_directions_that_hold_the_energy_are_remembered_and_removed() {
        let mut memory = Subspace::empty(6);
        memory.remember(&axes(&[0.0, 6.0, 3.0, 1.0, 0.0, 0.0]), 0.85).unwrap();
        let Subspace::Used(used) = &memory else { panic!("two of six directions") };
        assert_eq!(used.ncols(), 2, "6 + 3 of 10 are at least 85 %");
        let next = axes(&[1.0, 9.0, 9.0, 5.0, 2.0, 0.0]);
        let leading = memory.leading(&next, 2).unwrap();
        assert!(along(&leading[0], 3) && along(&leading[1], 4), "{leading:?}");
    }

    #[test]
    fn the_free_directions_are_kept_once_they_are_fewer() {
        let mut memory = Subspace::empty(6);
        memory.remember(&axes(&[8.0, 6.0, 0.0, 0.0, 0.0, 0.0]), 0.95).unwrap();
        memory.remember(&axes(&[8.0, 6.0, 4.0, 2.0, 0.0, 0.0]), 0.95).unwrap();
        let Subspace::Free(free) = &memory else { panic!("four of six directions are used") };
        assert_eq!(free.ncols(), 2);
        let moment = axes(&[50.0, 40.0, 30.0, 20.0, 1.0, 2.0]);
        assert!(along(&memory.leading(&moment, 1).unwrap()[0], 5));
        memory.remember(&axes(&[1.0, 1.0, 1.0, 1.0, 0.0, 6.0]), 0.95).unwrap();
        let Subspace::Free(free) = &memory else { panic!("one direction is free") };
        assert_eq!(free.ncols(), 1);
        assert!(along(&memory.leading(&moment, 1).unwrap()[0], 4));
        memory.remember(&moment, 0.999_999).unwrap();
        assert!(matches!(&memory, Subspace::Free(free) if free.ncols() == 1), "one direction stays free");
    }
}
