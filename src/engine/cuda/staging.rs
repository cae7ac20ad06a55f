//! Memory of the CPU that the GPU reads by itself: patches are cut and rounded straight into it.
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, DeviceRepr, PinnedHostSlice, ValidAsZeroBits};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{DType, Result, Tensor};

use super::super::device::Patches;
use super::gpu::Gpu;
use crate::kernels::{Element, bf16};

/// Images that are copied while the next ones are cut.
const PART: usize = 8;

/// Where patches stand before they are copied, in the products' format.
#[derive(Debug)]
pub(super) enum Staging {
    F32(Mutex<Option<Pinned<f32>>>),
    Bf16(Mutex<Option<Pinned<bf16>>>),
}

#[derive(Debug)]
pub(super) struct Pinned<T> {
    memory: PinnedHostSlice<T>,
    /// Happens when the last copy from it is done.
    copied: Option<CudaEvent>,
}

impl Staging {
    pub fn new(dtype: DType) -> Self {
        if dtype == DType::BF16 { Self::Bf16(Mutex::default()) } else { Self::F32(Mutex::default()) }
    }

    /// The patches on the device, `[patches, 3 · patch · patch]`.
    pub fn upload(&self, gpu: &Gpu, patches: &Patches<'_>) -> Result<Tensor> {
        let slice = match self {
            Self::F32(pinned) => CudaStorageSlice::F32(uploaded(gpu, pinned, patches, |x| x)?),
            Self::Bf16(pinned) => CudaStorageSlice::BF16(uploaded(gpu, pinned, patches, bf16::of)?),
        };
        Ok(gpu.tensor(slice, patches.shape()))
    }
}

fn uploaded<T: DeviceRepr + ValidAsZeroBits + Copy + Send>(
    gpu: &Gpu,
    pinned: &Mutex<Option<Pinned<T>>>,
    patches: &Patches<'_>,
    of: impl Fn(f32) -> T + Sync,
) -> Result<CudaSlice<T>> {
    let (stream, (count, width)) = (gpu.stream(), patches.shape());
    let numbers = count * width;
    // A panic leaves memory that is written anew before it is read.
    let mut pinned = pinned.lock().unwrap_or_else(PoisonError::into_inner);
    if pinned.as_ref().is_none_or(|pinned| pinned.memory.len() < numbers) {
        *pinned = None;
        // SAFETY: it is written below before it is read.
        let memory = unsafe { stream.context().alloc_pinned(numbers.next_power_of_two()) }.w()?;
        *pinned = Some(Pinned { memory, copied: None });
    }
    let Some(Pinned { memory, copied }) = pinned.as_mut() else { candle_core::bail!("no memory to stage patches in") };
    if let Some(copied) = copied.take() {
        copied.synchronize().w()?;
    }
    let memory = memory.as_mut_slice().w()?;
    // SAFETY: the copies write all of it.
    let mut slice = unsafe { stream.alloc::<T>(numbers) }.w()?;
    let mut cut = 0;
    for part in patches.parts(PART) {
        let range = cut..cut + part.shape().0 * width;
        part.cut_into(&mut memory[range.clone()], &of)?;
        stream.memcpy_htod(&memory[range.clone()], &mut slice.slice_mut(range.clone())).w()?;
        cut = range.end;
    }
    *copied = Some(stream.record_event(None).w()?);
    Ok(slice)
}
