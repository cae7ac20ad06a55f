//! Self-attention within each sample, a strip of queries at a time: there is never a whole matrix of scores,
//! only those of the strip.
use std::ops::Range;

use aligned_vec::{AVec, ConstAlign};

use super::elementwise::{exp, maximum, sum};
use super::{Float, Kernel, Matrix, PANEL, RowsMut, RowsRef, Start, parallel};

/// Numbers on a cache line.
type Aligned<E> = AVec<E, ConstAlign<64>>;

fn zeros<E: Float>(n: usize) -> Aligned<E> {
    let mut values = AVec::new(64);
    values.resize(n, E::default());
    values
}

/// One sample's rows.
#[derive(Clone, Debug)]
pub struct Attended {
    /// Rows of keys and values.
    pub tokens: Range<usize>,
    /// Rows of queries, and of outputs.
    pub queries: Range<usize>,
    /// Rows of its prefix in the matrices of prefixes; empty where it has none.
    pub prefix: Range<usize>,
}

impl Attended {
    /// A sample whose queries, keys and values are in the same rows, without a prefix.
    pub fn to_itself(rows: Range<usize>) -> Self {
        Self { tokens: rows.clone(), queries: rows, prefix: 0..0 }
    }
}

/// `softmax(Q Kᵀ / √width) V` of each head of each sample: from queries `[rows, d]`, keys and values
/// `[tokens, d]` to the heads' outputs side by side, `[rows, d]`. A row attends to the tokens of its own
/// sample alone. No sample has a prefix.
pub fn attention<E: Float>(kernel: &Kernel<E>, parts: [RowsRef<'_, E>; 3], samples: &[Attended], heads: usize, out: &RowsMut<'_, E>) {
    let none = RowsRef::new(&[], 0, parts[0].width(), parts[0].width());
    attention_with_prefixes(kernel, parts, [none; 2], samples, heads, out);
}

/// As [`attention`], where a row also attends to the keys and values of its sample's prefix. `prefixes`: the
/// keys and the values of all prefixes, `[rows, d]` each.
pub fn attention_with_prefixes<E: Float>(
    kernel: &Kernel<E>,
    [query, key, value]: [RowsRef<'_, E>; 3],
    prefixes: [RowsRef<'_, E>; 2],
    samples: &[Attended],
    heads: usize,
    out: &RowsMut<'_, E>,
) {
    let width = query.width() / heads;
    parallel(samples.len() * heads, |task| {
        let (sample, head) = (&samples[task / heads], task % heads);
        let queries = &sample.queries;
        let columns = head * width..(head + 1) * width;
        let keys = Keys::pack(Joined::of([key, prefixes[0]], sample, columns.clone()));
        let values = Values::pack(Joined::of([value, prefixes[1]], sample, columns.clone()));
        let padded;
        let query = if width.is_multiple_of(E::K_STEP) {
            query.range(queries.clone()).columns(columns.clone())
        } else {
            // Whole steps of k are read: what follows a head's last column would be another head's.
            padded = Matrix::of_rows(query.columns(columns.clone()), queries.clone());
            padded.view()
        };
        kernel.isa.run(
            #[inline(always)]
            || {
                let mut strip = Strip::new(kernel.rows.min(queries.len()), sample.tokens.len() + sample.prefix.len());
                for first in (0..queries.len()).step_by(kernel.rows) {
                    let rows = first..queries.len().min(first + kernel.rows);
                    strip.compute_weights(kernel, query.range(rows.clone()), &keys);
                    strip.average(kernel, rows.len(), &values, |row, column, results| {
                        let column = columns.start + column;
                        // SAFETY: a row and head of a sample belong to one task.
                        let out = unsafe { out.part(queries.start + first + row, column..column + results.len()) };
                        out.iter_mut().zip(results).for_each(|(o, &x)| *o = E::of(x));
                    });
                }
            },
        );
    });
}

/// One sample's keys or values of one head: those of its tokens, then those of its prefix.
#[derive(Clone, Copy)]
struct Joined<'a, E> {
    tokens: RowsRef<'a, E>,
    prefix: RowsRef<'a, E>,
}

impl<'a, E: Float> Joined<'a, E> {
    /// Some columns of one sample's rows in a matrix of the tokens and in one of the prefixes.
    fn of([tokens, prefixes]: [RowsRef<'a, E>; 2], sample: &Attended, columns: Range<usize>) -> Self {
        Self {
            tokens: tokens.range(sample.tokens.clone()).columns(columns.clone()),
            prefix: prefixes.range(sample.prefix.clone()).columns(columns),
        }
    }

    fn rows(&self) -> usize {
        self.tokens.rows() + self.prefix.rows()
    }

    fn width(&self) -> usize {
        self.tokens.width()
    }

    fn row(&self, row: usize) -> &'a [E] {
        match row.checked_sub(self.tokens.rows()) {
            None => self.tokens.row(row),
            Some(row) => self.prefix.row(row),
        }
    }
}

/// Keys of one head, as panels of tokens.
struct Keys<E> {
    panels: Aligned<E>,
    /// The head's width, padded to whole steps.
    k: usize,
    /// 1 / √width
    scale: f32,
}

impl<E: Float> Keys<E> {
    fn pack(keys: Joined<'_, E>) -> Self {
        let k = keys.width().next_multiple_of(E::K_STEP);
        let mut panels = zeros(keys.rows().div_ceil(PANEL) * k * PANEL);
        for token in 0..keys.rows() {
            let panel = &mut panels[token / PANEL * k * PANEL..][..k * PANEL];
            let groups = panel.chunks_exact_mut(PANEL * E::K_INTERLEAVE).zip(keys.row(token).chunks(E::K_INTERLEAVE));
            for (group, values) in groups {
                let cell = &mut group[token % PANEL * E::K_INTERLEAVE..][..E::K_INTERLEAVE];
                if values.len() == E::K_INTERLEAVE {
                    // A length that the compiler knows: no call to copy a few bytes.
                    (0..E::K_INTERLEAVE).for_each(|part| cell[part] = values[part]);
                } else {
                    cell[..values.len()].copy_from_slice(values);
                }
            }
        }
        Self { panels, k, scale: 1.0 / (keys.width() as f32).sqrt() }
    }
}

/// Values of one head, as panels of its columns.
struct Values<E> {
    panels: Aligned<E>,
    /// Tokens, padded to whole steps.
    k: usize,
    /// The head's width.
    width: usize,
}

impl<E: Float> Values<E> {
    fn pack(values: Joined<'_, E>) -> Self {
        let (k, width) = (values.rows().next_multiple_of(E::K_STEP), values.width());
        let mut panels = zeros(width.div_ceil(PANEL) * k * PANEL);
        for (index, panel) in panels.chunks_exact_mut(k * PANEL).enumerate() {
            let columns = index * PANEL..width.min((index + 1) * PANEL);
            for (group, target) in panel.chunks_exact_mut(PANEL * E::K_INTERLEAVE).enumerate().take(values.rows().div_ceil(E::K_INTERLEAVE))
            {
                for part in 0..E::K_INTERLEAVE.min(values.rows() - group * E::K_INTERLEAVE) {
                    let row = &values.row(group * E::K_INTERLEAVE + part)[columns.clone()];
                    target.iter_mut().skip(part).step_by(E::K_INTERLEAVE).zip(row).for_each(|(to, &x)| *to = x);
                }
            }
        }
        Self { panels, k, width }
    }
}

/// Scores and attention weights of a few queries.
struct Strip<E> {
    /// Tokens of the sample.
    tokens: usize,
    /// `[rows, panels · PANEL]`
    scores: Vec<f32>,
    /// e^(score − largest), `[rows, tokens padded to whole steps]`
    weights: Aligned<E>,
    /// Tokens, padded to whole steps.
    padded: usize,
    /// 1 / Σ weights of each row.
    scales: Vec<f32>,
    /// `[rows, PANEL]`
    results: Vec<f32>,
}

impl<E: Float> Strip<E> {
    fn new(rows: usize, tokens: usize) -> Self {
        let padded = tokens.next_multiple_of(E::K_STEP);
        Self {
            tokens,
            scores: vec![0.0; rows * tokens.next_multiple_of(PANEL)],
            weights: zeros(rows * padded),
            padded,
            scales: vec![0.0; rows],
            results: vec![0.0; rows * PANEL],
        }
    }

    /// The attention weights of some queries, before their division by the sum of their row.
    #[inline(always)]
    fn compute_weights(&mut self, kernel: &Kernel<E>, query: RowsRef<'_, E>, keys: &Keys<E>) {
        let (rows, width) = (query.rows(), self.tokens.next_multiple_of(PANEL));
        for (index, panel) in keys.panels.chunks_exact(keys.k * PANEL).enumerate() {
            kernel.multiply(query, keys.k, panel, Start::Zero, &mut self.scores[index * PANEL..], width);
        }
        for row in 0..rows {
            let scores = &mut self.scores[row * width..][..self.tokens];
            let largest = maximum(scores);
            let weights = &mut self.weights[row * self.padded..][..self.tokens];
            for (weight, score) in weights.iter_mut().zip(scores.iter_mut()) {
                *weight = E::of(exp((*score - largest) * keys.scale));
                // The sum is of the rounded weights, which are those that are multiplied.
                *score = weight.get();
            }
            self.scales[row] = 1.0 / sum(scores.len(), |i| scores[i]);
        }
    }

    /// Each row's weighted mean of the values, panel by panel: calls `each` with the row, the first column
    /// and the means.
    #[inline(always)]
    fn average(&mut self, kernel: &Kernel<E>, rows: usize, values: &Values<E>, mut each: impl FnMut(usize, usize, &[f32])) {
        let weights = RowsRef::new(&self.weights, rows, self.padded, self.padded);
        for (index, panel) in values.panels.chunks_exact(values.k * PANEL).enumerate() {
            kernel.multiply(weights, values.k, panel, Start::Zero, &mut self.results[..rows * PANEL], PANEL);
            let columns = PANEL.min(values.width - index * PANEL);
            for (row, results) in self.results[..rows * PANEL].chunks_exact_mut(PANEL).enumerate() {
                results.iter_mut().for_each(|x| *x *= self.scales[row]);
                each(row, index * PANEL, &results[..columns]);
            }
        }
    }
}

/// One head's attention weights `[rows, tokens]`, for the backward pass.
pub fn weights(kernel: &Kernel<f32>, query: RowsRef<'_, f32>, keys: RowsRef<'_, f32>) -> Vec<f32> {
    let (rows, tokens) = (query.rows(), keys.rows());
    let keys = Keys::pack(Joined { tokens: keys, prefix: keys.range(0..0) });
    let mut out = Vec::with_capacity(rows * tokens);
    let mut strip = Strip::new(kernel.rows.min(rows), tokens);
    for first in (0..rows).step_by(kernel.rows) {
        let chosen = first..rows.min(first + kernel.rows);
        kernel.isa.run(
            #[inline(always)]
            || strip.compute_weights(kernel, query.range(chosen.clone()), &keys),
        );
        for row in 0..chosen.len() {
            let scale = strip.scales[row];
            out.extend(strip.weights[row * strip.padded..][..tokens].iter().map(|w| w * scale));
        }
    }
    out
}
