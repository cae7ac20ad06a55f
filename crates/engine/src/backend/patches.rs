//! Cutting an image into patches.
use delo_model::input::Pixels;

/// Writes one patch of `side` × `side` pixels to `out`: `[3, height, width]` → `[3, side, side]`. `index`
/// counts the patches of the image row by row. Without an image the patch is white. `of` converts to the
/// product's number format.
#[inline(always)]
pub(crate) fn cut_patch<T: Copy>(pixels: Option<&Pixels>, index: usize, side: usize, out: &mut [T], of: impl Fn(f32) -> T) {
    let Some(Pixels { height, width, data }) = pixels else { return out.fill(of(1.0)) };
    let columns = width / side;
    let (top, left) = (index / columns * side, index % columns * side);
    for (line, out) in out.chunks_exact_mut(side).enumerate() {
        let (channel, y) = (line / side, line % side);
        let from = &data[(channel * height + top + y) * width + left..][..side];
        out.iter_mut().zip(from).for_each(|(out, &x)| *out = of(x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_cut_channel_by_channel_and_is_white_where_there_is_no_image() {
        let pixels = Pixels { height: 4, width: 6, data: (0..72u8).map(f32::from).collect() };
        let mut patch = [0.0; 12];
        cut_patch(Some(&pixels), 4, 2, &mut patch, |x| x);
        assert_eq!(patch, [14., 15., 20., 21., 38., 39., 44., 45., 62., 63., 68., 69.]);
        cut_patch(None, 0, 2, &mut patch, |x| x);
        assert_eq!(patch, [1.0; 12]);
    }
}
