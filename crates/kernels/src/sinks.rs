//! What is done with the results of a product.
use super::{Float, Isa, RowsMut, Tile, TileSink};

/// Adds the results to `out`.
pub struct ResidualSink<'a> {
    /// The instructions of the product's kernel.
    pub isa: Isa,
    /// `[rows, n]`
    pub out: RowsMut<'a, f32>,
}

impl TileSink for ResidualSink<'_> {
    #[inline(always)]
    fn tile(&self, tile: &mut Tile<'_>) {
        // SAFETY: no two tiles cover the same cell, and the instructions are the kernel's.
        unsafe { tile.add_to(self.isa, &self.out, 0..tile.rows, tile.row) };
    }
}

/// Puts `f` of the results into `out`.
pub struct MapSink<'a, E, M> {
    /// The instructions of the product's kernel.
    pub isa: Isa,
    /// From a result to what is stored.
    pub f: M,
    /// `[rows, n]`
    pub out: RowsMut<'a, E>,
}

impl<E: Float, M: Fn(f32) -> f32 + Sync> TileSink for MapSink<'_, E, M> {
    #[inline(always)]
    fn tile(&self, tile: &mut Tile<'_>) {
        tile.map(&self.f);
        // SAFETY: no two tiles cover the same cell.
        unsafe { tile.store(self.isa, &self.out) };
    }
}
