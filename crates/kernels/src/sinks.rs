//! What is done with the results of a product.
use super::{Element, Isa, RowsMut, Tile, TileSink};

/// Adds the results to `out`.
pub struct ResidualSink<'a> {
    pub isa: Isa,
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
pub struct MapSink<'a, E, F> {
    pub isa: Isa,
    pub f: F,
    pub out: RowsMut<'a, E>,
}

impl<E: Element, F: Fn(f32) -> f32 + Sync> TileSink for MapSink<'_, E, F> {
    #[inline(always)]
    fn tile(&self, tile: &mut Tile<'_>) {
        tile.map(&self.f);
        // SAFETY: no two tiles cover the same cell.
        unsafe { tile.store(self.isa, &self.out) };
    }
}
