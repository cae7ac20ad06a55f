//! The parts of a forward that take most time, one by one, on a layer of ViLT-B/32: `cargo bench`.
//! `delo bench kernels` shows what the kernels reach of the processor's ceiling.
use delo_kernels::attention::{Attended, attention};
use delo_kernels::norm::Norm;
use delo_kernels::{Float, Format, Isa, Matrix, PackedMatrix, RowsMut, Tile, TileSink, bf16, product};
use divan::Bencher;
use divan::counter::ItemsCount;

const TOKENS: usize = 185;
const WIDTH: usize = 768;
const MLP: usize = 3072;
const HEADS: usize = 12;

fn main() {
    divan::main();
}

struct Store<'a, E>(Isa, RowsMut<'a, E>);

impl<E: Float> TileSink for Store<'_, E> {
    #[inline(always)]
    fn tile(&self, tile: &mut Tile<'_>) {
        // SAFETY: no two tiles cover the same cell.
        unsafe { tile.store(self.0, &self.1) };
    }
}

/// Rows times the MLP's first map.
#[divan::bench(types = [f32, bf16], args = [1, 8])]
fn intermediate<E: Float>(bencher: Bencher<'_, '_>, samples: usize) {
    let (isa, rows) = (Isa::detect(), samples * TOKENS);
    let weights = PackedMatrix::<E>::new(&[&vec![0.01; MLP * WIDTH]], WIDTH);
    let (x, mut out) = (Matrix::<E>::zeros(rows, WIDTH), Matrix::<E>::zeros(rows, MLP));
    let work = ItemsCount::new(2 * rows * WIDTH * MLP);
    bencher.counter(work).bench_local(|| product(&E::kernel(isa), x.view(), &weights, None, &Store(isa, out.view_mut())));
}

/// One sample's self-attention.
#[divan::bench(types = [f32, bf16])]
fn self_attention<E: Float>(bencher: Bencher<'_, '_>) {
    let (qkv, mut out) = (Matrix::<E>::zeros(TOKENS, 3 * WIDTH), Matrix::<E>::zeros(TOKENS, WIDTH));
    let parts = [0, 1, 2].map(|part| qkv.view().columns(part * WIDTH..(part + 1) * WIDTH));
    let sample = [Attended::to_itself(0..TOKENS)];
    let work = ItemsCount::new(4 * TOKENS * TOKENS * WIDTH);
    bencher.counter(work).bench_local(|| attention(&E::kernel(Isa::detect()), parts, &sample, HEADS, &out.view_mut()));
}

/// Layer norm of every row.
#[divan::bench(types = [f32, bf16])]
fn layer_norm<E: Float>(bencher: Bencher<'_, '_>) {
    let norm = Norm { weight: vec![1.0; WIDTH], bias: vec![0.0; WIDTH], eps: 1e-12 };
    let (mut x, mut out) = (Matrix::<f32>::zeros(TOKENS, WIDTH), Matrix::<E>::zeros(TOKENS, WIDTH));
    (0..TOKENS).for_each(|row| x.row_mut(row).iter_mut().enumerate().for_each(|(i, x)| *x = ((i * 37 + row) % 17) as f32));
    bencher.counter(ItemsCount::new(TOKENS * WIDTH)).bench_local(|| norm.rows(Isa::detect(), x.view(), &out.view_mut()));
}
