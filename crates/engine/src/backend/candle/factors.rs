//! The copy of one layer's factors and routers on a device.
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use delo_model::method::factors::FactorBank;

/// The numbers of a [`FactorBank`] by which a forward multiplies. g, E, s, r and d are those of the bank.
#[derive(Debug)]
pub(crate) struct DeviceFactors {
    device: Device,
    dtype: DType,
    /// A, then α B, then one factor of zeros: `[2 · g · E · s + 1, d]`.
    factors: Tensor,
    /// `None` where the method has no routers.
    routers: Option<DeviceRouters>,
}

/// The routers, which choose the factors.
#[derive(Debug)]
pub(crate) struct DeviceRouters {
    /// W_A, then W_B, in f32: `[2 · g · E, d]`.
    pub weights: Tensor,
    /// The biases of W_A, then of W_B: `[2 · g · E]`.
    #[cfg(feature = "cuda")]
    pub biases: Tensor,
    /// What each A factor adds to the scores of the B factors: `[g, r, E, E]`.
    #[cfg(feature = "cuda")]
    pub table: Tensor,
}

impl DeviceFactors {
    /// The copy of a bank on a device in a number format. It is made at the first call and freed with the
    /// bank.
    ///
    /// # Errors
    /// Too little memory on the device.
    pub fn of(bank: &FactorBank, device: &Device, dtype: DType) -> Result<Arc<Self>> {
        let fits = |copy: &Self| copy.dtype == dtype && copy.device.same_device(device);
        bank.copies().get_or_make(fits, || Self::copied(bank, device, dtype))
    }

    fn copied(bank: &FactorBank, device: &Device, dtype: DType) -> Result<Self> {
        let d = bank.shape().hidden;
        let [mut factors, b] = bank.factor_numbers().map(|numbers| numbers.to_f32());
        factors.extend(b.into_iter().map(|x| bank.alpha() * x));
        factors.resize(factors.len() + d, 0.0);
        let routers = bank.routers().map(|routers| {
            let weights = [&routers.a, &routers.b].map(|numbers| numbers.to_f32()).concat();
            Ok::<_, candle_core::Error>(DeviceRouters {
                weights: Tensor::from_vec(weights, ((), d), device)?,
                #[cfg(feature = "cuda")]
                biases: Tensor::new([routers.bias_a.as_slice(), &routers.bias_b].concat(), device)?,
                #[cfg(feature = "cuda")]
                table: Tensor::new(routers.table.as_slice(), device)?,
            })
        });
        Ok(Self {
            factors: Tensor::from_vec(factors, ((), d), device)?.to_dtype(dtype)?,
            routers: routers.transpose()?,
            device: device.clone(),
            dtype,
        })
    }

    /// A, then α B, then one factor of zeros, in one piece: `[2 · g · E · s + 1, d]`.
    #[cfg(feature = "cuda")]
    pub fn all(&self) -> &Tensor {
        &self.factors
    }

    /// The routers; `None` where the method has none.
    pub fn routers(&self) -> Option<&DeviceRouters> {
        self.routers.as_ref()
    }

    /// The factors at these rows, `[rows, d]`. [`FactorBank::factor_rows`] gives the row of an A factor; the
    /// B factor of the same number is [`Self::first_b`] rows later.
    pub fn rows(&self, rows: &Tensor) -> Result<Tensor> {
        self.factors.index_select(rows, 0)
    }

    /// Number of rows of A, which is the first row of B.
    pub fn first_b(&self) -> usize {
        self.zero() / 2
    }

    /// The row of the factor of zeros.
    pub fn zero(&self) -> usize {
        self.factors.dims()[0] - 1
    }
}

impl DeviceRouters {
    /// W_A q of every group, then W_B q of every group: `[queries, d]` → `[queries, 2 · g · E]`.
    pub fn products(&self, queries: &Tensor) -> Result<Tensor> {
        queries.matmul(&self.weights.t()?)
    }
}

#[cfg(test)]
mod tests {
    use delo_model::method::factors::BankShape;

    use super::*;

    #[test]
    fn a_copy_belongs_to_its_bank_and_ends_with_it() {
        let shape = BankShape { groups: 1, experts: 2, rank: 2, slots: 1, hidden: 4 };
        let bank = FactorBank::new(shape, 2.0, vec![1.0; 24], vec![3.0; 24], None);
        let copy = |bank: &FactorBank, dtype| DeviceFactors::of(bank, &Device::Cpu, dtype).unwrap();
        let first = copy(&bank, DType::F32);
        assert!(Arc::ptr_eq(&first, &copy(&bank, DType::F32)));
        assert!(!Arc::ptr_eq(&first, &copy(&bank, DType::F16)), "a number format has a copy of its own");
        assert!(!Arc::ptr_eq(&first, &copy(&bank.clone(), DType::F32)), "a clone has a copy of its own");
        assert_eq!((first.first_b(), first.zero()), (6, 12));
        assert_eq!(
            first.rows(&Tensor::new(&[0u32, 6, 12], &Device::Cpu).unwrap()).unwrap().to_vec2::<f32>().unwrap(),
            [[1.0; 4], [6.0; 4], [0.0; 4]]
        );
        let kept = Arc::downgrade(&first);
        drop(first);
        assert!(kept.upgrade().is_some());
        drop(bank);
        assert!(kept.upgrade().is_none());
    }
}
