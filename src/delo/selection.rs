//! Hard selection of factors.

/// The indices of the `r` largest scores, by falling score; ties go to the lower index (METHOD.md 2).
pub fn top(scores: &[f32], r: usize) -> impl Iterator<Item = u32> + use<> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&i, &j| scores[j as usize].total_cmp(&scores[i as usize]));
    order.truncate(r);
    order.into_iter()
}

/// Softmax of a short row, in place.
pub fn softmax(row: &mut [f32]) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = (*x - top).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

#[cfg(test)]
mod tests {
    use super::top;

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(top(&[1.0, 3.0, 2.0, 3.0, 3.0], 3).collect::<Vec<_>>(), [1, 3, 4]);
    }
}
