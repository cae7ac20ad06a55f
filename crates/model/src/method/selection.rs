//! The r highest scores, and the softmax that makes scores.

/// The indices of the `r` highest scores, or of all scores where there are fewer; the highest score first,
/// ties to the lower index (METHOD.md 2).
pub fn top(scores: &[f32], r: usize) -> impl Iterator<Item = u32> + use<> {
    let falling = |&i: &u32, &j: &u32| scores[j as usize].total_cmp(&scores[i as usize]).then(i.cmp(&j));
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    if r < order.len() {
        order.select_nth_unstable_by(r, falling);
        order.truncate(r);
    }
    order.sort_unstable_by(falling);
    order.into_iter()
}

/// The softmax of a row, in place.
pub fn softmax(row: &mut [f32]) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = (*x - top).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

#[cfg(test)]
mod tests {
    use super::{softmax, top};

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(top(&[1.0, 3.0, 2.0, 3.0, 3.0], 3).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(top(&[1.0, 1.0, 1.0, 2.0], 1).collect::<Vec<_>>(), [3]);
        assert_eq!(top(&[1.0, 1.0, 1.0], 2).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn an_r_above_the_number_of_scores_selects_all_of_them() {
        assert_eq!(top(&[1.0, 3.0, 2.0], usize::MAX).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(top(&[1.0, 3.0, 2.0], 0).count(), 0);
        assert_eq!(top(&[], 5).count(), 0);
    }

    #[test]
    fn probabilities_have_the_ratios_of_the_exponentials_and_sum_to_1() {
        for shift in [0.0, -3.0, 1000.0] {
            let mut row = [shift, shift + 2f32.ln(), shift + 5f32.ln()];
            softmax(&mut row);
            for (found, expected) in row.into_iter().zip([0.125, 0.25, 0.625]) {
                assert!((found - expected).abs() < 1e-4, "{row:?}");
            }
        }
    }
}
