//! One NVIDIA GPU: its memory, addresses in it, and the launches of the kernels in `kernels.cu`.
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Error, Result, Shape, Storage, Tensor};

use super::plan::POOLS;
use super::plan::{Group, Members, Routing};
use delo_model::Modality;
use delo_model::method::Target;
use delo_model::vilt::LayerNorm;

/// The kernels, compiled by `build.rs`.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
/// Threads of a warp.
const WARP: usize = 32;
/// Warps of a block in kernels with one warp for each row.
const ROWS: usize = 4;
/// Threads of a block in kernels with one thread for each four numbers.
const THREADS: usize = 256;
/// Rows of a sample that a block projects or splits: `TILE` of `kernels.cu`.
pub(super) const TILE: usize = 8;

/// The kernels on a device, for one number format of the products.
#[derive(Debug)]
pub(super) struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    dtype: DType,
    norm: CudaFunction,
    residual_norm: CudaFunction,
    residual: CudaFunction,
    gelu: CudaFunction,
    means: CudaFunction,
    choose: CudaFunction,
    project: CudaFunction,
    split: CudaFunction,
    softmax: CudaFunction,
    merge: CudaFunction,
}

/// Launches a kernel with its arguments by value.
macro_rules! launch {
    ($gpu:expr, $kernel:ident, $config:expr, $($argument:expr),+ $(,)?) => {{
        let mut builder = $gpu.stream.launch_builder(&$gpu.$kernel);
        $(
            let argument = $argument;
            builder.arg(&argument);
        )+
        // SAFETY: the arguments have the order and types of the kernel's parameters in `kernels.cu`. The
        // addresses are of tensors of the sizes that the kernel expects; such a tensor is freed, if at all,
        // by a later call on the same stream.
        unsafe { builder.launch($config) }.w()?;
    }};
}

/// A size as a kernel's parameter.
fn int(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(|_| too_many(number))
}

fn too_many(number: usize) -> Error {
    Error::Msg(format!("{number} is more than one batch on a GPU may have: send fewer samples at once"))
}

/// A launch of `x` × `y` × `z` blocks, with threads (x, y) and bytes of shared memory for each.
fn grid(x: usize, y: usize, z: usize, threads: (usize, usize), shared: usize) -> Result<LaunchConfig> {
    let of = |number: usize| Ok::<_, Error>(int(number)? as u32);
    Ok(LaunchConfig { grid_dim: (of(x)?, of(y)?, of(z)?), block_dim: (of(threads.0)?, of(threads.1)?, 1), shared_mem_bytes: of(shared)? })
}

/// A launch with one warp for each row.
fn rows(rows: usize) -> Result<LaunchConfig> {
    grid(rows.div_ceil(ROWS), 1, 1, (ROWS * WARP, 1), 0)
}

/// A launch with `count` threads.
fn numbers(count: usize) -> Result<LaunchConfig> {
    grid(count.div_ceil(THREADS), 1, 1, (THREADS, 1), 0)
}

impl Gpu {
    /// Loads the kernels for one number format.
    ///
    /// # Errors
    /// The driver does not load the kernels.
    pub fn new(device: CudaDevice, dtype: DType) -> Result<Self> {
        let stream = device.cuda_stream();
        let module = stream.context().load_module(Ptx::from_src(PTX)).w()?;
        let of = |name: &str| module.load_function(name).w();
        let suffix = if dtype == DType::BF16 { "bf16" } else { "float" };
        let typed = |name: &str| of(&format!("{name}_{suffix}"));
        Ok(Self {
            norm: typed("norm")?,
            residual_norm: typed("residual_norm")?,
            residual: typed("residual")?,
            gelu: typed("gelu")?,
            means: of("means")?,
            choose: of("choose")?,
            project: typed("project")?,
            split: typed("split")?,
            softmax: typed("softmax")?,
            merge: typed("merge")?,
            device,
            stream,
            dtype,
        })
    }

    pub fn device(&self) -> Device {
        Device::Cuda(self.device.clone())
    }

    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// A tensor that owns this memory of the device.
    pub fn tensor(&self, slice: CudaStorageSlice, shape: impl Into<Shape>) -> Tensor {
        let storage = Storage::Cuda(CudaStorage { slice, device: self.device.clone() });
        Tensor::from_storage(storage, shape, BackpropOp::none(), false)
    }

    /// Uninitialised memory. A kernel writes all that is read of it before it is read.
    pub fn empty(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let count = shape.elem_count();
        // SAFETY: nothing is read that no kernel has written, as the comment of this function requires.
        let slice = unsafe {
            match dtype {
                DType::F32 => CudaStorageSlice::F32(self.device.alloc(count)?),
                DType::BF16 => CudaStorageSlice::BF16(self.device.alloc(count)?),
                DType::U32 => CudaStorageSlice::U32(self.device.alloc(count)?),
                _ => candle_core::bail!("no kernel writes {dtype:?}"),
            }
        };
        Ok(self.tensor(slice, shape))
    }

    /// The device address of a tensor's numbers. It is valid for kernels that are launched before the tensor
    /// is freed.
    ///
    /// # Errors
    /// A tensor that is not on a GPU or not contiguous.
    pub fn address(&self, tensor: &Tensor) -> Result<u64> {
        fn of<T>(slice: &CudaSlice<T>, stream: &CudaStream, offset: usize) -> u64 {
            slice.device_ptr(stream).0 + (offset * size_of::<T>()) as u64
        }
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { candle_core::bail!("a kernel reads tensors on the GPU, but this one is on the CPU") };
        if !layout.is_contiguous() {
            candle_core::bail!("a kernel reads contiguous tensors, but this one has the strides {:?}", layout.stride());
        }
        let offset = layout.start_offset();
        Ok(match &storage.slice {
            CudaStorageSlice::F32(slice) => of(slice, &self.stream, offset),
            CudaStorageSlice::BF16(slice) => of(slice, &self.stream, offset),
            CudaStorageSlice::U32(slice) => of(slice, &self.stream, offset),
            _ => candle_core::bail!("no kernel reads {:?}", tensor.dtype()),
        })
    }

    /// Layer normalisation of each row, `[rows, d]`, in the products' format.
    pub fn norm(&self, hidden: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        let (count, d) = hidden.dims2()?;
        let out = self.empty(self.dtype, (count, d))?;
        launch!(
            self,
            norm,
            rows(count)?,
            self.address(hidden)?,
            self.address(&norm.weight)?,
            self.address(&norm.bias)?,
            self.address(&out)?,
            int(count)?,
            int(d)?,
            norm.eps as f32,
        );
        Ok(out)
    }

    /// hidden + mapped + bias, `[rows, d]` in f32, and its layer normalisation in the products' format.
    pub fn residual_norm(&self, hidden: &Tensor, mapped: &Tensor, bias: &Tensor, norm: &LayerNorm) -> Result<(Tensor, Tensor)> {
        let (count, d) = hidden.dims2()?;
        let (sum, out) = (self.empty(DType::F32, (count, d))?, self.empty(self.dtype, (count, d))?);
        launch!(
            self,
            residual_norm,
            rows(count)?,
            self.address(hidden)?,
            self.address(mapped)?,
            self.address(bias)?,
            self.address(&norm.weight)?,
            self.address(&norm.bias)?,
            self.address(&sum)?,
            self.address(&out)?,
            int(count)?,
            int(d)?,
            norm.eps as f32,
        );
        Ok((sum, out))
    }

    /// hidden + mapped + bias, `[rows, d]` in f32.
    pub fn residual(&self, hidden: &Tensor, mapped: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (count, d) = hidden.dims2()?;
        let (sum, quads) = (self.empty(DType::F32, (count, d))?, count * d / 4);
        let (hidden, mapped, bias) = (self.address(hidden)?, self.address(mapped)?, self.address(bias)?);
        launch!(self, residual, numbers(quads)?, hidden, mapped, bias, self.address(&sum)?, int(quads)?, int(d)?);
        Ok(sum)
    }

    /// gelu(mapped + bias) in place, `[rows, d]`. No other tensor shares the storage of `mapped`.
    pub fn gelu(&self, mapped: &Tensor, bias: &Tensor) -> Result<()> {
        let (count, d) = mapped.dims2()?;
        let quads = count * d / 4;
        launch!(self, gelu, numbers(quads)?, self.address(mapped)?, self.address(bias)?, int(quads)?, int(d)?);
        Ok(())
    }

    /// The means of ranges of rows, `[ranges, d]`; zero where a range is empty. `ranges` is the address of
    /// `count` pairs (first row, one past the last).
    pub fn means(&self, hidden: &Tensor, ranges: u64, count: usize) -> Result<Tensor> {
        let d = hidden.dim(1)?;
        let out = self.empty(DType::F32, (count, d))?;
        let config = grid(d.div_ceil(WARP), count, 1, (WARP, 8), 0)?;
        launch!(self, means, config, self.address(hidden)?, ranges, self.address(&out)?, int(d)?);
        Ok(out)
    }

    /// Chooses every adapted sample's factors in every pool of a layer, given its queries
    /// `[samples · modalities, d]`.
    pub fn choose(&self, queries: &Tensor, routing: &Routing, layer: usize) -> Result<()> {
        let (queries_of_all, d) = queries.dims2()?;
        let config = grid(POOLS, queries_of_all / Modality::ALL.len(), 1, (THREADS, 1), 3 * routing.experts * size_of::<f32>())?;
        launch!(self, choose, config, self.address(queries)?, routing.pools(layer), routing.chosen(layer), int(d)?, int(routing.rank)?);
        Ok(())
    }

    /// x Aᵀ with the chosen factors of each sample, `[tokens, pools, rank]`. `tiles` is the address of
    /// `count` tiles.
    pub fn project(&self, x: &Tensor, routing: &Routing, layer: usize, tiles: u64, count: usize) -> Result<Tensor> {
        let (tokens, d) = x.dims2()?;
        let u = self.empty(DType::F32, (tokens, POOLS, routing.rank))?;
        let config = grid(count, 1, 1, (TILE / 2 * WARP, 1), 0)?;
        let (x, pools, chosen) = (self.address(x)?, routing.pools(layer), routing.chosen(layer));
        launch!(self, project, config, x, pools, chosen, tiles, self.address(&u)?, int(d)?, int(routing.rank)?);
        Ok(u)
    }

    /// Adds bias and update to a range of targets of a group's rows, and splits them by head:
    /// `[tokens, targets · d]` → `[targets, samples, heads, padded, d / heads]`.
    pub fn split(&self, group: &Group, part: &Part<'_>, heads: usize) -> Result<Tensor> {
        let Part { mapped, bias, update, members, first_target, targets } = *part;
        let d = mapped.dim(1)? / targets;
        let (samples, padded) = (group.samples.len(), members.padded);
        let out = self.empty(self.dtype, (targets, samples, heads, padded, d / heads))?;
        let config = grid((targets * d / 4).div_ceil(THREADS), padded.div_ceil(TILE), samples, (THREADS, 1), 0)?;
        let (u, pools, chosen, rank) = match update {
            Some((u, routing, layer)) => (self.address(u)?, routing.pools(layer), routing.chosen(layer), routing.rank),
            None => (0, 0, 0, 0),
        };
        launch!(
            self,
            split,
            config,
            self.address(mapped)?,
            self.address(bias)?,
            u,
            pools,
            chosen,
            members.address,
            self.address(&out)?,
            int(d)?,
            int(d / heads)?,
            int(first_target)?,
            int(targets)?,
            int(padded)?,
            int(rank)?,
        );
        Ok(out)
    }

    /// softmax(Q Kᵀ / √d_head) V of each head of a group's samples. Q, K and V are
    /// `[samples, heads, padded, d_head]` each; the results go to the rows of the members in `out`,
    /// `[rows, d]`.
    pub fn attend(&self, [query, key, value]: [&Tensor; 3], group: &Group, members: Members, out: &Tensor) -> Result<()> {
        let (samples, heads, queries, head) = query.dims4()?;
        let (d, padded) = (heads * head, key.dim(2)?);
        let scores = query.matmul(&key.t()?)?;
        let (scale, count) = (1.0 / (head as f32).sqrt(), samples * heads * queries);
        let keys = group.members.address;
        launch!(self, softmax, rows(count)?, self.address(&scores)?, keys, int(count)?, int(heads * queries)?, int(padded)?, scale);
        let contexts = scores.matmul(value)?;
        let config = grid((queries * d / 4).div_ceil(THREADS), samples, 1, (THREADS, 1), 0)?;
        launch!(self, merge, config, self.address(&contexts)?, members.address, self.address(out)?, int(d)?, int(head)?, int(queries)?);
        Ok(())
    }
}

/// The input of [`Gpu::split`].
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    /// The output of the frozen maps, without bias: `[rows, targets · d]`.
    pub mapped: &'a Tensor,
    /// The bias of all three targets, `[3 d]`.
    pub bias: &'a Tensor,
    /// The result of [`Gpu::project`], with its routing and layer; `None` where no sample is adapted.
    pub update: Option<(&'a Tensor, &'a Routing, usize)>,
    /// The group's rows in `mapped`.
    pub members: Members,
    /// The first target of `mapped`.
    pub first_target: usize,
    /// Number of targets in `mapped`.
    pub targets: usize,
}

impl<'a> Part<'a> {
    /// All targets of a group's rows.
    pub fn whole(mapped: &'a Tensor, bias: &'a Tensor, update: Option<(&'a Tensor, &'a Routing, usize)>, group: &Group) -> Self {
        Self { mapped, bias, update, members: group.members, first_target: 0, targets: Target::COUNT }
    }
}
