//! One layer's factor pools on a device, where factors and routers stay.
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor};

use super::serving_pools::ServingPools;
use super::task_model::POOLS;

/// The numbers of [`ServingPools`] that a forward multiplies by: p = [`POOLS`].
#[derive(Debug)]
pub struct DevicePools {
    /// A, then α B, then one factor of zeros: `[2 · p · E · s + 1, d]`.
    factors: Tensor,
    /// W_A, then W_B, in f32: `[2 · p · E, d]`.
    routers: Tensor,
    /// The biases of W_A, then of W_B: `[2 · p · E]`.
    #[cfg(feature = "cuda")]
    biases: Tensor,
    /// What A's factors add to the scores of B, see [`ServingPools`]: `[p, r, E, E]`.
    #[cfg(feature = "cuda")]
    table: Tensor,
}

impl DevicePools {
    pub(super) fn new(pools: &ServingPools, device: &Device, dtype: DType) -> Result<Self> {
        let d = pools.hidden();
        let [mut factors, b] = pools.factor_numbers().map(|numbers| numbers.to_f32());
        factors.extend(b.into_iter().map(|x| pools.alpha() * x));
        factors.resize(factors.len() + d, 0.0);
        let routers = pools.router_numbers().map(|numbers| numbers.to_f32()).concat();
        Ok(Self {
            factors: Tensor::from_vec(factors, ((), d), device)?.to_dtype(dtype)?,
            routers: Tensor::from_vec(routers, (2 * POOLS * pools.experts(), d), device)?,
            #[cfg(feature = "cuda")]
            biases: Tensor::new(pools.router_biases().concat(), device)?,
            #[cfg(feature = "cuda")]
            table: Tensor::new(pools.table(), device)?,
        })
    }

    /// Factors, routers, their biases and the table of A's factors, each in one piece.
    #[cfg(feature = "cuda")]
    pub fn tensors(&self) -> [&Tensor; 4] {
        [&self.factors, &self.routers, &self.biases, &self.table]
    }

    /// W_A q, then W_B q, of every pool: `[queries, d]` → `[queries, 2 · p · E]`.
    pub fn router_products(&self, queries: &Tensor) -> Result<Tensor> {
        queries.matmul(&self.routers.t()?)
    }

    /// The factors at some rows, `[rows, d]`: a factor of A stands where [`ServingPools::factor_rows`] says, one of B [`Self::first_b`] rows
    /// later.
    pub fn factors(&self, rows: &Tensor) -> Result<Tensor> {
        self.factors.index_select(rows, 0)
    }

    /// Rows of A.
    pub fn first_b(&self) -> usize {
        self.zero() / 2
    }

    /// The row of the factor of zeros.
    pub fn zero(&self) -> usize {
        self.factors.dims()[0] - 1
    }
}

/// The copies of some pools on devices. They belong to the pools: the memory of a device is free for other use by this process when the last batch has let go of the partition.
#[derive(Debug, Default)]
pub(super) struct DeviceCopies(Mutex<Vec<Copied>>);

#[derive(Debug)]
struct Copied {
    device: Device,
    dtype: DType,
    pools: Arc<DevicePools>,
}

impl DeviceCopies {
    /// The copy on a device, in a number format; `make` is called where there is none.
    pub fn get_or_make(&self, device: &Device, dtype: DType, make: impl FnOnce() -> Result<DevicePools>) -> Result<Arc<DevicePools>> {
        // A panic leaves the list whole: its change is a single call.
        let mut copies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copied) = copies.iter().find(|copied| copied.dtype == dtype && copied.device.same_device(device)) {
            return Ok(copied.pools.clone());
        }
        let pools = Arc::new(make()?);
        copies.push(Copied { device: device.clone(), dtype, pools: pools.clone() });
        Ok(pools)
    }
}

/// A clone of the pools is in memory of its own, on devices as on the CPU.
impl Clone for DeviceCopies {
    fn clone(&self) -> Self {
        Self::default()
    }
}
