// The operations of a forward that are no products by cuBLAS: norms, residual sums, activations, routing, the
// low-rank update, and attention's softmax. The operands of products have the type T, f32 or bf16. Hidden
// states, sums, norms, softmax and routing are in f32. The widths of rows, heads and padding are multiples of
// 4, and no row is wider than 128 * CHUNKS.
#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

constexpr int WARP = 32;
// A lane holds this many float4 of a row: d is at most 128 * CHUNKS.
constexpr int CHUNKS = 16;
// A lane holds this many float4 of a row that is projected: d is at most 128 * PROJECTED.
constexpr int PROJECTED = 12;
// A lane holds this many float4 of a row of scores.
constexpr int HELD = 4;
// Number of factors that are read at once.
constexpr int AT_ONCE = 4;
// Query, key and value.
constexpr int TARGETS = 3;
// The most pools of a layer: one for each target and modality.
constexpr int POOLS = TARGETS * 2;
// The most rows of a sample that one block projects or splits.
constexpr int TILE = 8;

// One sample's factors of a layer, in the layout of candle/factors.rs. `experts` is 0 where its task adds
// nothing to the layer.
struct Pools {
    // A, then alpha B, each [targets * groups, experts, slots, d].
    const void *factors;
    // W_A, then W_B: [2, targets * groups, experts, d]. Null: the first `rank` experts are chosen for every
    // sample.
    const float *routers;
    // [2, targets * groups, experts]
    const float *biases;
    // [targets * groups, rank, experts, experts]
    const float *table;
    // `groups`: pools of each target; one for each modality, or one for both.
    int experts, rank, slots, groups;
};

// One sample of a group. `mapped`: its first row in the matrix of mapped rows; `packed`: its first row in the
// packed matrix; `rows`: its number of rows; `sample`: its number in the batch.
struct Member {
    int mapped, packed, rows, sample;
};

// At most TILE rows of one sample, from row `first` of the packed matrix.
struct Tile {
    int sample, first, rows, unused;
};

__device__ inline float4 load4(const float *from) { return *reinterpret_cast<const float4 *>(from); }
__device__ inline float4 load4(const bf16 *from) {
    uint2 raw = *reinterpret_cast<const uint2 *>(from);
    return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u), __uint_as_float(raw.y << 16),
                       __uint_as_float(raw.y & 0xffff0000u));
}
__device__ inline void store4(float *to, float4 x) { *reinterpret_cast<float4 *>(to) = x; }
__device__ inline void store4(bf16 *to, float4 x) {
    __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y), high = __floats2bfloat162_rn(x.z, x.w);
    uint2 raw = make_uint2(*reinterpret_cast<uint32_t *>(&low), *reinterpret_cast<uint32_t *>(&high));
    *reinterpret_cast<uint2 *>(to) = raw;
}
__device__ inline float load(const float *from) { return *from; }
__device__ inline float load(const bf16 *from) { return __bfloat162float(*from); }
__device__ inline void store(float *to, float x) { *to = x; }
__device__ inline void store(bf16 *to, float x) { *to = __float2bfloat16_rn(x); }

__device__ inline float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ inline float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

__device__ inline float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}
__device__ inline float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

// Layer normalisation of a row that the lanes of a warp hold, in two passes.
template <typename T> __device__ void normalise(const float4 (&row)[CHUNKS], const float *weight, const float *bias, T *out, int d, float eps) {
    int lane = threadIdx.x % WARP;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
        if ((i * WARP + lane) * 4 < d) sum += row[i].x + row[i].y + row[i].z + row[i].w;
    float mean = warp_sum(sum) / d, squares = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
        if ((i * WARP + lane) * 4 < d) {
            float4 x = row[i] + make_float4(-mean, -mean, -mean, -mean);
            squares += dot(x, x);
        }
    float scale = rsqrtf(warp_sum(squares) / d + eps);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        int at = (i * WARP + lane) * 4;
        if (at < d) {
            float4 w = load4(weight + at), b = load4(bias + at), x = row[i];
            store4(out + at, make_float4((x.x - mean) * scale * w.x + b.x, (x.y - mean) * scale * w.y + b.y, (x.z - mean) * scale * w.z + b.z,
                                         (x.w - mean) * scale * w.w + b.w));
        }
    }
}

// out = layernorm(hidden), a warp for each row of [rows, d].
template <typename T>
__device__ void norm(const float *hidden, const float *weight, const float *bias, T *out, int rows, int d, float eps) {
    int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    float4 values[CHUNKS];
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        int at = (i * WARP + lane) * 4;
        if (at < d) values[i] = load4(hidden + (size_t)row * d + at);
    }
    normalise(values, weight, bias, out + (size_t)row * d, d, eps);
}

// sum = hidden + mapped + map_bias; out = layernorm(sum), a warp for each row of [rows, d].
template <typename T>
__device__ void residual_norm(const float *hidden, const T *mapped, const float *map_bias, const float *weight, const float *bias, float *sum, T *out,
                              int rows, int d, float eps) {
    int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    size_t start = (size_t)row * d;
    float4 values[CHUNKS];
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        int at = (i * WARP + lane) * 4;
        if (at < d) {
            values[i] = load4(hidden + start + at) + load4(mapped + start + at) + load4(map_bias + at);
            store4(sum + start + at, values[i]);
        }
    }
    normalise(values, weight, bias, out + start, d, eps);
}

// sum = hidden + mapped + bias, four numbers for each thread.
template <typename T> __device__ void residual(const float *hidden, const T *mapped, const float *bias, float *sum, int quads, int d) {
    int quad = blockIdx.x * blockDim.x + threadIdx.x;
    if (quad >= quads) return;
    size_t at = (size_t)quad * 4;
    store4(sum + at, load4(hidden + at) + load4(mapped + at) + load4(bias + at % d));
}

__device__ inline float gelu_of(float x) { return 0.5f * x * (1 + erff(x * 0.70710678118654752f)); }

// gelu(mapped + bias) in place, four numbers for each thread.
template <typename T> __device__ void gelu(T *mapped, const float *bias, int quads, int d) {
    int quad = blockIdx.x * blockDim.x + threadIdx.x;
    if (quad >= quads) return;
    size_t at = (size_t)quad * 4;
    float4 x = load4(mapped + at) + load4(bias + at % d);
    store4(mapped + at, make_float4(gelu_of(x.x), gelu_of(x.y), gelu_of(x.z), gelu_of(x.w)));
}

// The mean of each range of rows (first, one past the last); zero where the range is empty. A block has
// threads (32 columns, 8 rows at once).
extern "C" __global__ void means(const float *hidden, const int2 *ranges, float *out, int d) {
    __shared__ float sums[8][WARP];
    int column = blockIdx.x * WARP + threadIdx.x;
    int2 range = ranges[blockIdx.y];
    float sum = 0;
    if (column < d)
        for (int row = range.x + threadIdx.y; row < range.y; row += 8) sum += hidden[(size_t)row * d + column];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= d) return;
    for (int i = 1; i < 8; i++) sum += sums[i][threadIdx.x];
    out[(size_t)blockIdx.y * d + column] = sum / max(range.y - range.x, 1);
}

// Softmax of `count` scores in shared memory, by one warp.
__device__ void softmax_of(float *scores, int count) {
    int lane = threadIdx.x % WARP;
    float top = -INFINITY, sum = 0;
    for (int i = lane; i < count; i += WARP) top = fmaxf(top, scores[i]);
    top = warp_max(top);
    for (int i = lane; i < count; i += WARP) sum += scores[i] = expf(scores[i] - top);
    sum = warp_sum(sum);
    for (int i = lane; i < count; i += WARP) scores[i] /= sum;
    __syncwarp();
}

// The index of the largest score, the lowest of equal ones; the score becomes -infinity. By one warp.
__device__ int take_top(float *scores, int count) {
    int lane = threadIdx.x % WARP, best = 0x7fffffff;
    float top = -INFINITY;
    for (int i = lane; i < count; i += WARP)
        if (scores[i] > top || best == 0x7fffffff) {
            top = scores[i];
            best = i;
        }
    for (int step = WARP / 2; step > 0; step /= 2) {
        float other = __shfl_xor_sync(~0u, top, step);
        int index = __shfl_xor_sync(~0u, best, step);
        if (index != 0x7fffffff && (best == 0x7fffffff || other > top || (other == top && index < best))) {
            top = other;
            best = index;
        }
    }
    __syncwarp();
    if (lane == 0) scores[best] = -INFINITY;
    __syncwarp();
    return best;
}

// Chooses the experts of A, then of B, of one sample's pool (METHOD.md 2): a block for each (pool, sample).
// `queries` is [samples, modalities, d], `chosen` is [samples, pools, 2, most].
extern "C" __global__ void choose(const float *queries, const Pools *of_samples, uint32_t *chosen, int d, int most) {
    extern __shared__ float scores[];
    int pool = blockIdx.x, sample = blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Pools pools = of_samples[sample];
    int experts = pools.experts;
    if (experts == 0 || pool >= TARGETS * pools.groups) return;
    uint32_t *out = chosen + (size_t)(sample * POOLS + pool) * 2 * most;
    if (pools.routers == nullptr) {
        for (int place = threadIdx.x; place < pools.rank; place += blockDim.x) out[place] = out[most + place] = place;
        return;
    }
    const float *query = queries + (size_t)(sample * 2 + pool % pools.groups) * d;
    for (int row = warp; row < 2 * experts; row += blockDim.x / WARP) {
        int at = (row / experts * TARGETS * pools.groups + pool) * experts + row % experts;
        const float *router = pools.routers + (size_t)at * d;
        float sum = 0;
        for (int k = lane * 4; k < d; k += WARP * 4) sum += dot(load4(router + k), load4(query + k));
        sum = warp_sum(sum);
        if (lane == 0) scores[row] = sum + pools.biases[at];
    }
    __syncthreads();
    if (warp > 0) return;
    float *of_a = scores, *of_b = scores + experts, *paired = scores + 2 * experts;
    for (int i = lane; i < experts; i += WARP) paired[i] = 0;
    softmax_of(of_a, experts);
    for (int place = 0; place < pools.rank; place++) {
        int best = take_top(of_a, experts);
        if (lane == 0) out[place] = best;
        const float *row = pools.table + ((size_t)(pool * pools.rank + place) * experts + best) * experts;
        for (int i = lane; i < experts; i += WARP) paired[i] += row[i];
    }
    __syncwarp();
    softmax_of(paired, experts);
    softmax_of(of_b, experts);
    for (int i = lane; i < experts; i += WARP) of_b[i] += paired[i];
    __syncwarp();
    for (int place = 0; place < pools.rank; place++) {
        int best = take_top(of_b, experts);
        if (lane == 0) out[most + place] = best;
    }
}

// The factor of A (side 0) or of B (side 1) that is chosen for a sample in one place of a pool.
template <typename T>
__device__ inline const T *factor(const Pools &pools, const uint32_t *chosen, int sample, int pool, int side, int place, int d, int most) {
    int expert = chosen[((size_t)(sample * POOLS + pool) * 2 + side) * most + place];
    size_t row = ((size_t)(side * TARGETS * pools.groups + pool) * pools.experts + expert) * pools.slots + min(place, pools.slots - 1);
    return static_cast<const T *>(pools.factors) + row * d;
}

// x A^T for every row and the chosen A factors of every pool: `u` is [tokens, pools, most]. A block of TILE /
// 2 warps for each tile; a warp holds two rows.
template <typename T>
__device__ void project(const T *x, const Pools *of_samples, const uint32_t *chosen, const Tile *tiles, float *u, int d, int most) {
    Tile tile = tiles[blockIdx.x];
    Pools pools = of_samples[tile.sample];
    int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * 2;
    if (pools.experts == 0 || first >= tile.rows) return;
    bool both = first + 1 < tile.rows;
    const T *row = x + (size_t)(tile.first + first) * d;
    float4 one[PROJECTED], other[PROJECTED];
#pragma unroll
    for (int i = 0; i < PROJECTED; i++) {
        int at = (i * WARP + lane) * 4;
        one[i] = other[i] = make_float4(0, 0, 0, 0);
        if (at < d) {
            one[i] = load4(row + at);
            if (both) other[i] = load4(row + d + at);
        }
    }
    float *out = u + (size_t)(tile.first + first) * POOLS * most;
    for (int pool = 0; pool < TARGETS * pools.groups; pool++)
        for (int place = 0; place < pools.rank; place += AT_ONCE) {
            const T *a[AT_ONCE];
            float sums[AT_ONCE] = {}, other_sums[AT_ONCE] = {};
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++)
                a[j] = factor<T>(pools, chosen, tile.sample, pool, 0, min(place + j, pools.rank - 1), d, most);
#pragma unroll
            for (int i = 0; i < PROJECTED; i++) {
                int at = (i * WARP + lane) * 4;
                if (at < d) {
#pragma unroll
                    for (int j = 0; j < AT_ONCE; j++) {
                        float4 numbers = load4(a[j] + at);
                        sums[j] += dot(numbers, one[i]);
                        other_sums[j] += dot(numbers, other[i]);
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                float sum = warp_sum(sums[j]), other_sum = warp_sum(other_sums[j]);
                if (lane == 0 && place + j < pools.rank) {
                    out[pool * most + place + j] = sum;
                    if (both) out[(POOLS + pool) * most + place + j] = other_sum;
                }
            }
        }
}

// mapped + bias + u B of a range of targets, by head: `mapped` [rows, targets * d] -> `out`
// [targets, samples, heads, padded, head], with zeros in rows of padding. A thread for four columns of TILE
// rows; grid (columns, tiles of rows, samples). `of_samples` is null where no sample is adapted.
template <typename T>
__device__ void split(const T *mapped, const float *bias, const float *u, const Pools *of_samples, const uint32_t *chosen, const Member *members,
                      T *out, int d, int head, int first_target, int targets, int padded, int most) {
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (column >= targets * d) return;
    Member member = members[blockIdx.z];
    int first = blockIdx.y * TILE, target = column / d, of_target = column % d;
    float4 sums[TILE], start = load4(bias + first_target * d + column);
#pragma unroll
    for (int i = 0; i < TILE; i++)
        sums[i] = first + i < member.rows ? start + load4(mapped + (size_t)(member.mapped + first + i) * targets * d + column)
                                          : make_float4(0, 0, 0, 0);
    Pools pools;
    pools.experts = 0;
    if (of_samples) pools = of_samples[member.sample];
    if (pools.experts > 0)
        for (int group = 0; group < pools.groups; group++)
            for (int place = 0; place < pools.rank; place += AT_ONCE) {
                int pool = (first_target + target) * pools.groups + group;
                float4 b[AT_ONCE];
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++)
                    if (place + j < pools.rank) b[j] = load4(factor<T>(pools, chosen, member.sample, pool, 1, place + j, d, most) + of_target);
                const float *weights = u + ((size_t)(member.packed + first) * POOLS + pool) * most + place;
#pragma unroll
                for (int i = 0; i < TILE; i++)
#pragma unroll
                    for (int j = 0; j < AT_ONCE; j++)
                        if (first + i < member.rows && place + j < pools.rank) {
                            float weight = weights[(size_t)i * POOLS * most + j];
                            sums[i] = sums[i] + make_float4(weight * b[j].x, weight * b[j].y, weight * b[j].z, weight * b[j].w);
                        }
            }
    size_t heads = d / head, to = ((target * (size_t)gridDim.z + blockIdx.z) * heads + of_target / head) * padded;
#pragma unroll
    for (int i = 0; i < TILE; i++)
        if (first + i < padded) store4(out + (to + first + i) * head + of_target % head, sums[i]);
}

// Softmax of scaled scores in place over the keys of each sample: [samples, heads, queries, padded], a warp
// for each row. The part of a row that the lanes hold is read once; the rest of a longer row is read several
// times.
template <typename T>
__device__ void softmax(T *scores, const Member *keys, int rows, int rows_of_sample, int padded, float scale) {
    int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    int count = keys[row / rows_of_sample].rows;
    T *of_row = scores + (size_t)row * padded;
    float4 held[HELD];
    float top = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int at = (i * WARP + lane) * 4;
        held[i] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (at < count) {
            held[i] = load4(of_row + at);
            if (at + 1 >= count) held[i].y = -INFINITY;
            if (at + 2 >= count) held[i].z = -INFINITY;
            if (at + 3 >= count) held[i].w = -INFINITY;
        }
        top = fmaxf(top, fmaxf(fmaxf(held[i].x, held[i].y), fmaxf(held[i].z, held[i].w)));
    }
    for (int i = HELD * WARP * 4 + lane; i < count; i += WARP) top = fmaxf(top, load(of_row + i));
    top = warp_max(top);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        if (i * WARP * 4 >= padded) break;
        held[i] = make_float4(__expf((held[i].x - top) * scale), __expf((held[i].y - top) * scale), __expf((held[i].z - top) * scale),
                              __expf((held[i].w - top) * scale));
        sum += held[i].x + held[i].y + held[i].z + held[i].w;
    }
    for (int i = HELD * WARP * 4 + lane; i < count; i += WARP) sum += expf((load(of_row + i) - top) * scale);
    sum = 1 / warp_sum(sum);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int at = (i * WARP + lane) * 4;
        if (at < padded) store4(of_row + at, make_float4(held[i].x * sum, held[i].y * sum, held[i].z * sum, held[i].w * sum));
    }
    for (int i = HELD * WARP * 4 + lane; i < padded; i += WARP)
        store(of_row + i, i < count ? expf((load(of_row + i) - top) * scale) * sum : 0);
}

// Puts the heads back into rows: `contexts` [samples, heads, padded, head] -> `out` [rows, d]. A thread for
// four columns; grid (columns and rows, samples).
template <typename T> __device__ void merge(const T *contexts, const Member *members, T *out, int d, int head, int padded) {
    int at = (blockIdx.x * blockDim.x + threadIdx.x) * 4, row = at / d, column = at % d;
    Member member = members[blockIdx.y];
    if (row >= member.rows) return;
    size_t from = ((size_t)blockIdx.y * (d / head) + column / head) * padded + row;
    store4(out + (size_t)(member.mapped + row) * d + column, load4(contexts + from * head + column % head));
}

#define KERNELS(T)                                                                                                                                       \
    extern "C" __global__ void norm_##T(const float *hidden, const float *weight, const float *bias, T *out, int rows, int d, float eps) {             \
        norm(hidden, weight, bias, out, rows, d, eps);                                                                                                   \
    }                                                                                                                                                    \
    extern "C" __global__ void residual_norm_##T(const float *hidden, const T *mapped, const float *map_bias, const float *weight, const float *bias,  \
                                                 float *sum, T *out, int rows, int d, float eps) {                                                       \
        residual_norm(hidden, mapped, map_bias, weight, bias, sum, out, rows, d, eps);                                                                   \
    }                                                                                                                                                    \
    extern "C" __global__ void residual_##T(const float *hidden, const T *mapped, const float *bias, float *sum, int quads, int d) {                   \
        residual(hidden, mapped, bias, sum, quads, d);                                                                                                   \
    }                                                                                                                                                    \
    extern "C" __global__ void gelu_##T(T *mapped, const float *bias, int quads, int d) { gelu(mapped, bias, quads, d); }                              \
    extern "C" __global__ void project_##T(const T *x, const Pools *of_samples, const uint32_t *chosen, const Tile *tiles, float *u, int d, int most) { \
        project(x, of_samples, chosen, tiles, u, d, most);                                                                                               \
    }                                                                                                                                                    \
    extern "C" __global__ void split_##T(const T *mapped, const float *bias, const float *u, const Pools *of_samples, const uint32_t *chosen,          \
                                         const Member *members, T *out, int d, int head, int first_target, int targets, int padded, int most) {          \
        split(mapped, bias, u, of_samples, chosen, members, out, d, head, first_target, targets, padded, most);                                          \
    }                                                                                                                                                    \
    extern "C" __global__ void softmax_##T(T *scores, const Member *keys, int rows, int rows_of_sample, int padded, float scale) {                     \
        softmax(scores, keys, rows, rows_of_sample, padded, scale);                                                                                      \
    }                                                                                                                                                    \
    extern "C" __global__ void merge_##T(const T *contexts, const Member *members, T *out, int d, int head, int padded) {                              \
        merge(contexts, members, out, d, head, padded);                                                                                                  \
    }

KERNELS(float)
KERNELS(bf16)
