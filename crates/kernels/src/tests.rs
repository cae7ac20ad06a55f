//! Every kernel against its portable twin and the definition, over odd shapes; and rows that do not depend on their neighbours.
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::attention::{Attended, attention};
use super::*;

fn random(n: usize, seed: u64) -> Vec<f32> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
}

fn stream<E: Element>(rows: usize, width: usize, seed: u64) -> Stream<E> {
    let values = random(rows * width, seed);
    let mut stream = Stream::zeros(rows, width);
    for (row, values) in values.chunks_exact(width).enumerate() {
        stream.row_mut(row).iter_mut().zip(values).for_each(|(to, &x)| *to = E::of(x));
    }
    stream
}

struct Store<'a>(Isa, RowsMut<'a, f32>);

impl TileSink for Store<'_> {
    #[inline(always)]
    fn tile(&self, tile: &mut Tile<'_>) {
        // SAFETY: no two tiles cover the same cell.
        unsafe { tile.store(self.0, &self.1) };
    }
}

fn multiplied<E: Element>(isa: Isa, x: &Stream<E>, weights: &PackedMatrix<E>) -> Stream<f32> {
    let mut out = Stream::zeros(x.rows(), weights.n());
    let kernel = E::kernel(isa);
    product(&kernel, x.view(), weights, None, &Store(isa, out.view_mut()));
    out
}

/// The product agrees with the definition on every set of instructions.
fn agrees<E: Element>(rows: usize, k: usize, n: usize) -> Result<(), TestCaseError> {
    let (x, w) = (stream::<E>(rows, k, 1), random(n * k, 2));
    let weights = PackedMatrix::<E>::new(&[&w], k);
    for isa in Isa::available() {
        let out = multiplied(isa, &x, &weights);
        for row in 0..rows {
            for column in 0..n {
                let terms = || x.row(row).iter().zip(&w[column * k..]).map(|(x, &w)| f64::from(x.get()) * f64::from(E::of(w).get()));
                let (sum, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                let off = (f64::from(out.row(row)[column]) - sum).abs();
                prop_assert!(off <= 2e-6 * size + 1e-6, "{} {rows} x {k} x {n} at {row}, {column}: off by {off}", E::kernel(isa).name);
            }
        }
    }
    Ok(())
}

/// softmax(Q Kᵀ / √width) V of one head, by the definition.
fn attended<E: Element>(qkv: &Stream<E>, tokens: std::ops::Range<usize>, query: usize, d: usize, head: std::ops::Range<usize>) -> Vec<f32> {
    let part = |row: usize, part: usize| qkv.row(row)[part * d + head.start..part * d + head.end].iter().map(|x| x.get());
    let scale = 1.0 / (head.len() as f32).sqrt();
    let scores: Vec<f32> =
        tokens.clone().map(|token| scale * part(query, 0).zip(part(token, 1)).map(|(q, k)| q * k).sum::<f32>()).collect();
    let weights: Vec<f32> = scores.iter().map(|s| s.exp()).collect();
    let total: f32 = weights.iter().sum();
    let mut out = vec![0.0; head.len()];
    for (token, weight) in tokens.zip(weights) {
        out.iter_mut().zip(part(token, 2)).for_each(|(o, v)| *o += weight / total * v);
    }
    out
}

fn attention_agrees<E: Element>(sizes: &[usize], heads: usize, width: usize, bar: f32) -> Result<(), TestCaseError> {
    let (d, rows) = (heads * width, sizes.iter().sum());
    let qkv = stream::<E>(rows, 3 * d, 3);
    let mut start = 0;
    let spans: Vec<_> = sizes
        .iter()
        .map(|size| {
            start += size;
            start - size..start
        })
        .collect();
    for isa in Isa::available() {
        let mut out = Stream::<f32>::zeros(rows, d);
        let mut rounded = Stream::<E>::zeros(rows, d);
        let samples: Vec<_> = spans.iter().map(|s| Attended { tokens: s.clone(), queries: s.clone() }).collect();
        let parts = [0, 1, 2].map(|part| qkv.view().columns(part * d..(part + 1) * d));
        attention(&E::kernel(isa), parts, &samples, heads, &rounded.view_mut());
        (0..rows).for_each(|row| out.row_mut(row).iter_mut().zip(rounded.row(row)).for_each(|(o, x)| *o = x.get()));
        for span in &spans {
            for row in span.clone() {
                for head in 0..heads {
                    let columns = head * width..(head + 1) * width;
                    for (got, want) in out.row(row)[columns.clone()].iter().zip(attended(&qkv, span.clone(), row, d, columns)) {
                        prop_assert!((got - want).abs() <= bar, "{}: {got} for {want}", E::kernel(isa).name);
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn attention_of_the_narrowest_heads_agrees_with_the_definition() {
    attention_agrees::<f32>(&[1], 2, 1, 2e-6).unwrap();
    attention_agrees::<bf16>(&[1, 3], 2, 1, 1e-2).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn products_agree_with_the_definition(rows in 1usize..70, k in 1usize..300, n in 1usize..140) {
        agrees::<f32>(rows, k, n)?;
        agrees::<bf16>(rows, k, n)?;
    }

    #[test]
    fn attention_agrees_with_the_definition(sizes in prop::collection::vec(1usize..60, 1..4), heads in 1usize..4, width in 1usize..70) {
        attention_agrees::<f32>(&sizes, heads, width, 2e-6)?;
        attention_agrees::<bf16>(&sizes, heads, width, 1e-2)?;
    }

    #[test]
    fn packing_and_unpacking_give_the_matrix_back(n in 1usize..80, k in 1usize..80) {
        let w = random(n * k, 5);
        prop_assert_eq!(PackedMatrix::<f32>::new(&[&w], k).unpack(), w.clone());
        prop_assert_eq!(PackedMatrix::<f32>::new(&[&w], k).transposed().transposed().unpack(), w);
    }

    #[test]
    fn rounding_a_row_is_rounding_its_numbers(seed: u64) {
        let row: Vec<f32> = random(PANEL, seed).iter().enumerate().map(|(i, x)| x * 10f32.powi(i as i32 - 16)).collect();
        for isa in Isa::available() {
            let mut rounded = [bf16::ZERO; PANEL];
            bf16::round(isa, row.as_slice().try_into().unwrap(), &mut rounded);
            prop_assert_eq!(rounded.to_vec(), row.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
        }
    }
}

/// A row's results are the same bits whatever rows are beside it, on one thread or on several.
fn independent<E: Element>() {
    let (k, n) = (200, 70);
    let weights = PackedMatrix::<E>::new(&[&random(n * k, 7)], k);
    let x = stream::<E>(61, k, 8);
    for isa in Isa::available() {
        let together = multiplied(isa, &x, &weights);
        let alone = pool(1);
        let mut one = Stream::<E>::zeros(1, k);
        for row in 0..x.rows() {
            one.row_mut(0).copy_from_slice(x.row(row));
            let out = alone.install(|| multiplied(isa, &one, &weights));
            assert_eq!(out.row(0), together.row(row), "{}", E::kernel(isa).name);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    independent::<f32>();
    independent::<bf16>();
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// With rows enough for each of some threads, for some of many, and for none of them to have rows of their own.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (k, n) = (70, 200);
    let weights = PackedMatrix::<f32>::new(&[&random(n * k, 9)], k);
    for rows in [20, 70, 301, 1030] {
        let x = stream::<f32>(rows, k, 10);
        let of = |threads| pool(threads).install(|| multiplied(Isa::detect(), &x, &weights).to_vec());
        let expected = of(1);
        assert!([2, 3, 7, 16].into_iter().all(|threads| of(threads) == expected), "{rows} rows");
    }
}

#[test]
fn each_task_is_done_once_however_many_threads_share_them() {
    for (threads, tasks) in [1, 2, 3, 8].into_iter().flat_map(|threads| [0, 1, 2, 7, 1000].map(|tasks| (threads, tasks))) {
        let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool(threads).install(|| parallel(tasks, |task| _ = done[task].fetch_add(1, Ordering::Relaxed)));
        assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1), "{tasks} tasks on {threads} threads");
    }
}

#[test]
fn bf16_rounds_to_the_nearest_even_and_keeps_what_is_not_finite() {
    for bits in (0..=u32::MAX).step_by(65_521) {
        let x = f32::from_bits(bits);
        assert!(bf16::of(x) == bf16::from_f32(x) || (bf16::of(x).is_nan() && x.is_nan()), "{x}");
    }
    assert!(bf16::of(f32::from_bits(0x7fff_ffff)).is_nan() && bf16::of(f32::INFINITY).is_infinite());
}

#[test]
fn a_name_is_what_the_command_line_takes() {
    for isa in Isa::ALL {
        assert_eq!(isa.to_string().parse(), Ok(isa));
    }
    for precision in Precision::ALL {
        assert_eq!(precision.to_string().parse(), Ok(precision));
    }
    assert!("mmx".parse::<Isa>().unwrap_err().contains("avx512-bf16"));
}
