//! Conversion between candle's tensors and plain f32 numbers on the CPU.
use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor};

/// The values of a contiguous f32 operand of a custom operation.
pub(super) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (from, to) =
        layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("packed operations take contiguous tensors".to_owned()))?;
    Ok(&storage.as_slice::<f32>()?[from..to])
}

/// Calls `f` with the values of a tensor, in f32. Copies only what is on another device, of another type or
/// not contiguous.
pub(crate) fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(values(storage, layout)?)),
        _ => Err(candle_core::Error::Msg("a tensor that was copied to the CPU is not there".to_owned())),
    }
}

/// A copy of the values of a tensor, in f32.
pub(super) fn values_of(tensor: &Tensor) -> Result<Vec<f32>> {
    with_values(tensor, <[f32]>::to_vec)
}

/// A tensor `[rows, width]` of equally long rows.
pub(super) fn from_rows(rows: &[Vec<f32>]) -> Result<Tensor> {
    let width = rows.first().map_or(0, Vec::len);
    Tensor::from_vec(rows.concat(), (rows.len(), width), &Device::Cpu)
}
