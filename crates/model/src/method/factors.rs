//! One layer's factors as the engine serves them, of any method: numbers in f32 or bf16, and the choice of a
//! sample's factors.
use super::backend_copies::BackendCopies;
use super::numbers::{Numbers, NumbersRef};
use super::pool::Target;
use super::selection::{softmax, top};
use crate::modality::{Modality, PerModality};
use delo_kernels::{Isa, Precision};

/// The factors of one layer. A target has G *groups*: one for each modality (DeLo), or a single one (static
/// LoRA). The g = targets · G groups are stacked; group k of target t has the index t · G + k. A group holds
/// E experts with s slots each, and a slot holds a factor of A and a factor of B.
#[derive(Clone, Debug)]
pub struct FactorBank {
    shape: BankShape,
    /// α: the update of a target is α Σ b ⊗ a over its chosen pairs (METHOD.md 2).
    alpha: f32,
    /// A `[g, E, s, d]`
    a: Numbers,
    /// B `[g, E, s, d]`
    b: Numbers,
    /// What chooses the factors of a sample; `None`: every sample uses the first r experts of each group.
    routers: Option<Routers>,
    copies: BackendCopies,
}

/// The dimensions of a [`FactorBank`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankShape {
    /// G: groups of a target, at most one for each modality.
    pub groups: usize,
    /// E: experts in a group.
    pub experts: usize,
    /// r: factor pairs of a group that a sample uses.
    pub rank: usize,
    /// s: slots of an expert.
    pub slots: usize,
    /// d: width of the backbone.
    pub hidden: usize,
}

/// The routers, which choose the factors of a sample by its queries (METHOD.md 2).
#[derive(Clone, Debug)]
pub struct Routers {
    /// W_A `[g, E, d]`.
    pub a: Numbers,
    /// The bias of W_A, `[g, E]`.
    pub bias_a: Vec<f32>,
    /// W_B `[g, E, d]`.
    pub b: Numbers,
    /// The bias of W_B, `[g, E]`.
    pub bias_b: Vec<f32>,
    /// `[g, r, E, E]`: row (i, e) is W_AB[i]ᵀ a_e, which the A factor of expert e in place i adds to the
    /// scores of B (METHOD.md 7).
    pub table: Vec<f32>,
}

/// The experts chosen in one group, in pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Experts that give A factors, the highest score first, `[r]`.
    pub a: Vec<u32>,
    /// Experts that give B factors, the highest score first, `[r]`; the i-th is paired with the i-th of `a`.
    pub b: Vec<u32>,
}

impl BankShape {
    /// g: the groups of all targets.
    pub fn all_groups(&self) -> usize {
        Target::COUNT * self.groups
    }
}

impl FactorBank {
    /// A bank of A and B, `[g, E, s, d]` each, in f32.
    ///
    /// # Panics
    /// If A or B does not have exactly the numbers of the shape.
    pub fn new(shape: BankShape, alpha: f32, a: Vec<f32>, b: Vec<f32>, routers: Option<Routers>) -> Self {
        let numbers = shape.all_groups() * shape.experts * shape.slots * shape.hidden;
        assert!(a.len() == numbers && b.len() == numbers, "factors do not fill {shape:?}");
        Self { shape, alpha, a: Numbers::F32(a), b: Numbers::F32(b), routers, copies: BackendCopies::default() }
    }

    /// The same factors and routers in another number format.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Self {
        let routers =
            self.routers.map(|routers| Routers { a: routers.a.in_precision(precision), b: routers.b.in_precision(precision), ..routers });
        let (a, b) = (self.a.in_precision(precision), self.b.in_precision(precision));
        Self { a, b, routers, copies: BackendCopies::default(), ..self }
    }

    /// Its dimensions.
    pub fn shape(&self) -> &BankShape {
        &self.shape
    }

    /// α
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// G · r: factor pairs of one target that a sample uses.
    pub fn pairs(&self) -> usize {
        self.shape.groups * self.shape.rank
    }

    /// A and B, `[g, E, s, d]` each; B is not multiplied by α.
    pub fn factor_numbers(&self) -> [&Numbers; 2] {
        [&self.a, &self.b]
    }

    /// The routers; `None` where all samples use the same factors.
    pub fn routers(&self) -> Option<&Routers> {
        self.routers.as_ref()
    }

    /// The copies that backends made of it.
    pub fn copies(&self) -> &BackendCopies {
        &self.copies
    }

    /// The modality that gives the query by which the experts of a group are chosen.
    pub fn modality(&self, group: usize) -> Modality {
        Modality::ALL[group % self.shape.groups]
    }

    /// The choice in every group (METHOD.md 2), `[g]`, given the query of each modality, `[d]`.
    pub fn choose(&self, isa: Isa, queries: &PerModality<Vec<f32>>) -> Vec<Choice> {
        let Some(routers) = &self.routers else { return self.unrouted() };
        let of_group = |group: usize| {
            let query = &queries[self.modality(group)];
            self.choose_in(group, routers, self.products(isa, &routers.a, group, query), self.products(isa, &routers.b, group, query))
        };
        (0..self.shape.all_groups()).map(of_group).collect()
    }

    /// The choice without routers: the first r experts of each group, `[g]`.
    pub fn unrouted(&self) -> Vec<Choice> {
        let first: Vec<u32> = (0..self.shape.rank as u32).collect();
        vec![Choice { a: first.clone(), b: first }; self.shape.all_groups()]
    }

    /// W q of a group, `[E]`, for a router's weight W `[g, E, d]`.
    fn products(&self, isa: Isa, weight: &Numbers, group: usize, query: &[f32]) -> Vec<f32> {
        let BankShape { experts, hidden, .. } = self.shape;
        let mut products = vec![0.0; experts];
        isa.run(
            #[inline(always)]
            || {
                for (expert, product) in products.iter_mut().enumerate() {
                    *product = weight.slice((group * experts + expert) * hidden, hidden).dot(query);
                }
            },
        );
        products
    }

    /// The choice in one group: g_A and g_B of METHOD.md 2, given W_A q and W_B q of the group, `[E]` each.
    pub fn choose_in(&self, group: usize, routers: &Routers, a: Vec<f32>, b: Vec<f32>) -> Choice {
        let BankShape { experts: e, rank, .. } = self.shape;
        let scores = |mut scores: Vec<f32>, bias: &[f32]| {
            scores.iter_mut().zip(&bias[group * e..(group + 1) * e]).for_each(|(score, bias)| *score += bias);
            softmax(&mut scores);
            scores
        };
        let a: Vec<u32> = top(&scores(a, &routers.bias_a), rank).collect();
        let mut paired = vec![0.0; e];
        for (place, &expert) in a.iter().enumerate() {
            let row = ((group * rank + place) * e + expert as usize) * e;
            paired.iter_mut().zip(&routers.table[row..row + e]).for_each(|(sum, x)| *sum += x);
        }
        softmax(&mut paired);
        let mut score_b = scores(b, &routers.bias_b);
        score_b.iter_mut().zip(&paired).for_each(|(s, p)| *s += p);
        Choice { a, b: top(&score_b, rank).collect() }
    }

    /// The chosen A factors of a group, in the order of the choice, `[d]` each.
    pub fn a_factors<'a>(&'a self, group: usize, choice: &'a Choice) -> impl Iterator<Item = NumbersRef<'a>> {
        self.factors(&self.a, group, &choice.a)
    }

    /// The chosen B factors of a group, in the order of the choice, `[d]` each, not multiplied by α.
    pub fn b_factors<'a>(&'a self, group: usize, choice: &'a Choice) -> impl Iterator<Item = NumbersRef<'a>> {
        self.factors(&self.b, group, &choice.b)
    }

    /// The rows of A or B, as `[g · E · s, d]`, that hold the factors of these experts: slot i of the i-th
    /// expert.
    pub fn factor_rows<'a>(&self, group: usize, chosen: &'a [u32]) -> impl Iterator<Item = usize> + use<'a> {
        let BankShape { experts, slots, .. } = self.shape;
        chosen.iter().enumerate().map(move |(place, &expert)| (group * experts + expert as usize) * slots + place.min(slots - 1))
    }

    fn factors<'a>(&'a self, numbers: &'a Numbers, group: usize, chosen: &'a [u32]) -> impl Iterator<Item = NumbersRef<'a>> {
        let hidden = self.shape.hidden;
        self.factor_rows(group, chosen).map(move |row| numbers.slice(row * hidden, hidden))
    }
}
