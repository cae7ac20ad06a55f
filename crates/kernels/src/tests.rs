//! Every kernel against the definition, over odd shapes and on every set of instructions that this processor
//! has; and results that depend neither on the rows beside them nor on the number of threads.
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::attention::{Attended, attention, attention_with_prefixes};
use super::micro::int8::Int8;
use super::*;

fn random(n: usize, seed: u64) -> Vec<f32> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
}

fn matrix<E: Float>(rows: usize, width: usize, seed: u64) -> Matrix<E> {
    let values = random(rows * width, seed);
    let mut matrix = Matrix::zeros(rows, width);
    for (row, values) in values.chunks_exact(width).enumerate() {
        matrix.row_mut(row).iter_mut().zip(values).for_each(|(to, &x)| *to = E::of(x));
    }
    matrix
}

fn multiplied<F: Format>(isa: Isa, x: &Matrix<F::Float>, weights: &PackedMatrix<F>, bias: Option<&[f32]>) -> Matrix<f32> {
    let mut out = Matrix::zeros(x.rows(), weights.n());
    product(&F::kernel(isa), x.view(), weights, bias, &MapSink { isa, f: |x| x, out: out.view_mut() });
    out
}

/// The product of the numbers that the operands stand for in format `F` agrees with the definition, on every
/// set of instructions. `value` is what an activation stands for.
fn product_agrees<F: Format>([rows, k, n]: [usize; 3], value: impl Fn(F::Activation, F::RowScale) -> f32) -> Result<(), TestCaseError> {
    let (x, w, bias) = (matrix::<F::Float>(rows, k, 1), random(n * k, 2), random(n, 3));
    let weights = PackedMatrix::<F>::new(&[&w], k);
    let columns: Vec<Vec<f64>> = w
        .chunks_exact(k)
        .map(|column| {
            let scale = F::column_scale(column);
            column.iter().map(|&x| f64::from(F::weight_value(F::weight(x, scale), scale))).collect()
        })
        .collect();
    for isa in Isa::available() {
        let out = multiplied(isa, &x, &weights, Some(&bias));
        let activations = F::activations(isa, x.view());
        for row in 0..rows {
            let scale = activations.scales()[row];
            let x: Vec<f64> = activations.rows().row(row).iter().map(|&x| f64::from(value(x, scale))).collect();
            for (column, weights) in columns.iter().enumerate() {
                let terms = || x.iter().zip(weights).map(|(x, w)| x * w);
                let (sum, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                let off = (f64::from(out.row(row)[column]) - sum - f64::from(bias[column])).abs();
                let name = F::kernel(isa).name;
                prop_assert!(off <= 2e-6 * size + 1e-6, "{name} {rows} x {k} x {n} at {row}, {column}: off by {off}");
            }
        }
    }
    Ok(())
}

/// What the sums of a call of a micro-kernel begin with.
#[derive(Clone, Copy, Debug)]
enum Begin {
    Zero,
    Columns,
    Results,
}

/// A micro-kernel's sums are those of the definition to the bit, on operands whose sums are exact in any
/// order, and it writes nothing else. The closures make an activation, a weight and a sum of a small integer.
fn kernel_is_exact<F: Format<Accumulator: PartialEq>>(
    [rows, steps, gap]: [usize; 3],
    begin: Begin,
    activation: impl Fn(i32) -> F::Activation,
    weight: impl Fn(i32) -> F::Weight,
    sum: impl Fn(i32) -> F::Accumulator,
) -> Result<(), TestCaseError> {
    let (k, out_stride) = (steps * F::K_STEP, PANEL + gap);
    let stride = k + gap * F::K_STEP;
    let small = |i: usize| ((i * 37 + 11) % 17) as i32 - 8;
    let unsigned = |i: usize| small(i) + 8;
    let x: Vec<_> = (0..rows * stride).map(|i| activation(unsigned(i))).collect();
    let panel = aligned_vec::AVec::<_, aligned_vec::ConstAlign<64>>::from_iter(64, (0..k * PANEL).map(|i| weight(small(i * 3 + 5))));
    let columns: [_; PANEL] = std::array::from_fn(|column| sum(small(column)));
    let before: Vec<i32> = (0..rows * out_stride).map(|i| small(i * 5 + 1)).collect();
    for isa in Isa::available() {
        let kernel = F::kernel(isa);
        let mut out: Vec<_> = before.iter().map(|&i| sum(i)).collect();
        let start = match begin {
            Begin::Zero => Start::Zero,
            Begin::Columns => Start::Columns(&columns),
            Begin::Results => Start::Results,
        };
        kernel.multiply(RowsRef::new(&x, rows, k, stride), k, &panel, start, &mut out, out_stride);
        for (at, &got) in out.iter().enumerate() {
            let (row, column) = (at / out_stride, at % out_stride);
            let first = match begin {
                Begin::Zero => 0,
                Begin::Columns => small(column),
                Begin::Results => before[at],
            };
            let place = |i: usize| (i / F::K_INTERLEAVE * PANEL + column) * F::K_INTERLEAVE + i % F::K_INTERLEAVE;
            let terms = || (0..k).map(|i| unsigned(row * stride + i) * small(place(i) * 3 + 5)).sum::<i32>();
            let want = if column < PANEL { first + terms() } else { before[at] };
            prop_assert!(got == sum(want), "{} {rows} rows of {k} at {row}, {column}: {got:?} for {want}", kernel.name);
        }
    }
    Ok(())
}

/// softmax(Q Kᵀ / √width) V of one head, by the definition. `keys`: rows of queries, keys and values side by
/// side.
fn attended<E: Float>(query: &[E], keys: &[&[E]], d: usize, head: std::ops::Range<usize>) -> Vec<f32> {
    let part = |row: &[E], part: usize| row[part * d + head.start..part * d + head.end].iter().map(|x| x.get()).collect::<Vec<_>>();
    let scale = 1.0 / (head.len() as f32).sqrt();
    let q = part(query, 0);
    let scores: Vec<f32> = keys.iter().map(|key| scale * q.iter().zip(part(key, 1)).map(|(q, k)| q * k).sum::<f32>()).collect();
    let weights: Vec<f32> = scores.iter().map(|s| s.exp()).collect();
    let total: f32 = weights.iter().sum();
    let mut out = vec![0.0; head.len()];
    for (key, weight) in keys.iter().zip(weights) {
        out.iter_mut().zip(part(key, 2)).for_each(|(o, v)| *o += weight / total * v);
    }
    out
}

/// The ranges of rows that follow one another in these sizes.
fn consecutive(sizes: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut start = 0;
    let of_size = |size: &usize| {
        start += size;
        start - size..start
    };
    sizes.iter().map(of_size).collect()
}

/// `sizes`: the tokens of each sample. `prefixes`: the rows of its prefix.
fn attention_agrees<E: Float>(sizes: &[usize], prefixes: &[usize], heads: usize, width: usize, bar: f32) -> Result<(), TestCaseError> {
    let (d, rows) = (heads * width, sizes.iter().sum());
    let (qkv, prefix) = (matrix::<E>(rows, 3 * d, 3), matrix::<E>(prefixes.iter().sum(), 3 * d, 4));
    let (spans, behind) = (consecutive(sizes), consecutive(prefixes));
    for isa in Isa::available() {
        let mut out = Matrix::<f32>::zeros(rows, d);
        let mut rounded = Matrix::<E>::zeros(rows, d);
        let samples: Vec<_> =
            spans.iter().zip(&behind).map(|(s, prefix)| Attended { prefix: prefix.clone(), ..Attended::to_itself(s.clone()) }).collect();
        let parts = [0, 1, 2].map(|part| qkv.view().columns(part * d..(part + 1) * d));
        let of_prefixes = [1, 2].map(|part| prefix.view().columns(part * d..(part + 1) * d));
        attention_with_prefixes(&E::kernel(isa), parts, of_prefixes, &samples, heads, &rounded.view_mut());
        (0..rows).for_each(|row| out.row_mut(row).iter_mut().zip(rounded.row(row)).for_each(|(o, x)| *o = x.get()));
        for (span, behind) in spans.iter().zip(&behind) {
            let keys: Vec<&[E]> = span.clone().map(|row| qkv.row(row)).chain(behind.clone().map(|row| prefix.row(row))).collect();
            for row in span.clone() {
                for head in 0..heads {
                    let columns = head * width..(head + 1) * width;
                    for (got, want) in out.row(row)[columns.clone()].iter().zip(attended(qkv.row(row), &keys, d, columns)) {
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
    attention_agrees::<f32>(&[1], &[0], 2, 1, 2e-6).unwrap();
    attention_agrees::<bf16>(&[1, 3], &[2, 0], 2, 1, 1e-2).unwrap();
}

#[test]
fn the_prefix_of_one_sample_leaves_the_bits_of_the_others() {
    let (heads, d) = (2, 10);
    let (qkv, prefix) = (matrix::<f32>(9, 3 * d, 3), matrix::<f32>(4, 3 * d, 4));
    let (parts, prefixes) = (
        [0, 1, 2].map(|part| qkv.view().columns(part * d..(part + 1) * d)),
        [1, 2].map(|part| prefix.view().columns(part * d..(part + 1) * d)),
    );
    let computed = |of_first| {
        let samples = [Attended { prefix: of_first, ..Attended::to_itself(0..4) }, Attended::to_itself(4..9)];
        let mut out = Matrix::<f32>::zeros(9, d);
        attention_with_prefixes(&f32::kernel(Isa::detect()), parts, prefixes, &samples, heads, &out.view_mut());
        out.to_vec()
    };
    let (without, with) = (computed(0..0), computed(1..4));
    assert_ne!(without[..4 * d], with[..4 * d]);
    assert_eq!(without[4 * d..], with[4 * d..]);
    let mut plain = Matrix::<f32>::zeros(9, d);
    attention(&f32::kernel(Isa::detect()), parts, &[0..4, 4..9].map(Attended::to_itself), heads, &plain.view_mut());
    assert_eq!(without, plain.to_vec());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn products_agree_with_the_definition(rows in 1usize..70, k in 1usize..300, n in 1usize..140) {
        product_agrees::<f32>([rows, k, n], |x, ()| x)?;
        product_agrees::<bf16>([rows, k, n], |x, ()| x.get())?;
        product_agrees::<Int8>([rows, k, n], Int8::activation_value)?;
    }

    #[test]
    fn every_micro_kernel_sums_as_the_definition_and_writes_nothing_else(
        rows in 1usize..70,
        steps in 1usize..20,
        gap in 0usize..4,
        begin in prop_oneof![Just(Begin::Zero), Just(Begin::Columns), Just(Begin::Results)],
    ) {
        let (float, rounded) = (|i: i32| i as f32, |i: i32| bf16::of(i as f32));
        kernel_is_exact::<f32>([rows, steps, gap], begin, float, float, float)?;
        kernel_is_exact::<bf16>([rows, steps, gap], begin, rounded, rounded, float)?;
        kernel_is_exact::<Int8>([rows, steps, gap], begin, |i| i as u8, |i| i as i8, |i| i)?;
    }

    #[test]
    fn int8_products_are_as_near_to_those_of_f32_as_their_scales_explain(rows in 1usize..30, k in 1usize..200, n in 1usize..70) {
        let (x, w) = (matrix::<bf16>(rows, k, 1), random(n * k, 2));
        let out = multiplied(Isa::detect(), &x, &PackedMatrix::<Int8>::new(&[&w], k), None);
        let largest = |numbers: &[f32]| numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
        for (row, column) in (0..rows).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let x: Vec<f32> = x.row(row).iter().map(|x| x.get()).collect();
            let w = &w[column * k..(column + 1) * k];
            let sum: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            // Each operand is off by half a step of 1/127 of the largest at most.
            let bar = k as f32 * largest(&x) * largest(w) * (1.01 / 127.0);
            let got = out.row(row)[column];
            prop_assert!((got - sum).abs() <= bar, "{rows} x {k} x {n} at {row}, {column}: {got} for {sum}");
        }
    }

    #[test]
    fn attention_agrees_with_the_definition(
        samples in prop::collection::vec((1usize..60, 0usize..40), 1..4),
        heads in 1usize..4,
        width in 1usize..70,
    ) {
        let (sizes, prefixes): (Vec<usize>, Vec<usize>) = samples.into_iter().unzip();
        attention_agrees::<f32>(&sizes, &prefixes, heads, width, 2e-6)?;
        attention_agrees::<bf16>(&sizes, &prefixes, heads, width, 1e-2)?;
    }

    #[test]
    fn packing_and_unpacking_give_the_matrix_back(n in 1usize..80, k in 1usize..80) {
        let w = random(n * k, 5);
        prop_assert_eq!(PackedMatrix::<f32>::new(&[&w], k).unpack(), w.clone());
        prop_assert_eq!(PackedMatrix::<f32>::new(&[&w], k).transposed().transposed().unpack(), w.clone());
        let off = PackedMatrix::<Int8>::new(&[&w], k).unpack().iter().zip(&w).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        prop_assert!(off <= 0.5 / 127.0 + 1e-6, "int8 is off by {off}");
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
fn independent<F: Format>() {
    let (k, n) = (200, 70);
    let weights = PackedMatrix::<F>::new(&[&random(n * k, 7)], k);
    let x = matrix::<F::Float>(61, k, 8);
    for isa in Isa::available() {
        let together = multiplied(isa, &x, &weights, None);
        let alone = pool(1);
        let mut one = Matrix::<F::Float>::zeros(1, k);
        for row in 0..x.rows() {
            one.row_mut(0).copy_from_slice(x.row(row));
            let out = alone.install(|| multiplied(isa, &one, &weights, None));
            assert_eq!(out.row(0), together.row(row), "{}", F::kernel(isa).name);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    independent::<f32>();
    independent::<bf16>();
    independent::<Int8>();
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// With enough rows for each of several threads, for some of many threads, and for no thread to have rows of
/// its own.
fn same_on_any_number_of_threads<F: Format>() {
    let (k, n) = (70, 200);
    let weights = PackedMatrix::<F>::new(&[&random(n * k, 9)], k);
    for rows in [20, 70, 301, 1030] {
        let x = matrix::<F::Float>(rows, k, 10);
        let of = |threads| pool(threads).install(|| multiplied(Isa::detect(), &x, &weights, None).to_vec());
        let expected = of(1);
        assert!([2, 3, 7, 16].into_iter().all(|threads| of(threads) == expected), "{rows} rows");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    same_on_any_number_of_threads::<f32>();
    same_on_any_number_of_threads::<bf16>();
    same_on_any_number_of_threads::<Int8>();
}

/// The kernel for each set of instructions of this processor.
fn names<F: Format>() -> Vec<&'static str> {
    Isa::available().map(|isa| F::kernel(isa).name).collect()
}

#[test]
fn each_set_of_instructions_has_the_fastest_kernel_that_needs_no_more() {
    let float = ["f32 portable", "f32 avx2", "f32 avx512", "f32 avx512", "f32 avx512"];
    let rounded = ["bf16 portable", "bf16 avx2", "bf16 avx512", "bf16 avx512-bf16", "bf16 amx"];
    let count = Isa::available().count();
    assert_eq!(names::<f32>(), float[..count]);
    assert_eq!(names::<bf16>(), rounded[..count]);
    assert!(Isa::available().all(|isa| f32::kernel(isa).isa == isa), "what is no product runs on the same set");
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
