//! The adapted linear maps of a layer, and their factor pools.
use crate::modality::Modality;

/// An adapted linear map of a layer. Pools are stacked in the order of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The query map of attention.
    Query,
    /// The key map of attention.
    Key,
    /// The value map of attention.
    Value,
}

impl Target {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Query, Self::Key, Self::Value];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// `query`, `key` or `value`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
        }
    }
}

/// A factor pool of a layer: one for each target and modality (METHOD.md 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId {
    /// The map that it adapts.
    pub target: Target,
    /// The modality that gives the query by which its experts are chosen.
    pub modality: Modality,
}

impl PoolId {
    /// The number of pools in a layer.
    pub const COUNT: usize = Target::COUNT * Modality::ALL.len();

    /// All pools of a layer, in the order in which they are stacked.
    pub fn all() -> impl Iterator<Item = Self> {
        Target::ALL.into_iter().flat_map(|target| Modality::ALL.map(|modality| Self { target, modality }))
    }

    /// Its index in the stack.
    pub fn index(self) -> usize {
        self.target as usize * Modality::ALL.len() + self.modality as usize
    }

    /// The beginning of the names of its tensors in the artifact: `layers.0.query.visual`.
    pub fn prefix(self, layer: usize) -> String {
        format!("layers.{layer}.{}.{}", self.target.name(), self.modality.pool_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_a_pool_is_its_place_in_the_stack() {
        for (place, pool) in PoolId::all().enumerate() {
            assert_eq!(pool.index(), place);
        }
        let pool = PoolId { target: Target::Key, modality: Modality::Text };
        assert_eq!((pool.index(), pool.prefix(2).as_str()), (3, "layers.2.key.textual"));
    }
}
