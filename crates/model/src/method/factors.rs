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
    /// The query of a missing modality is its proxy's (METHOD.md 3).
    guided: bool,
    copies: BackendCopies,
}

/// Why a backend other than the CPU's refuses a bank.
pub const CPU_ALONE: &str = "this method lacks a part (an ablation), and runs on CPUs alone: compute with --device cpu";

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
        Self { shape, alpha, a: Numbers::F32(a), b: Numbers::F32(b), routers, guided: true, copies: BackendCopies::default() }
    }

    /// The same factors and routers, without the cross-modal guide: the query of a missing modality is that
    /// of its own dummy.
    #[must_use]
    pub fn without_guide(self) -> Self {
        Self { guided: false, ..self }
    }

    /// Whether the query of a missing modality is its proxy's (METHOD.md 3).
    pub fn guided(&self) -> bool {
        self.guided
    }

    /// Whether a CPU alone computes it: a bank without the guide, or with routers whose one query is the mean
    /// of both modalities'.
    pub fn needs_cpu(&self) -> bool {
        !self.guided || (self.shape.groups == 1 && self.routers.is_some())
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

    /// The choice in every group (METHOD.md 2), `[g]`, given the query of each modality, `[d]`. A target's
    /// only group is chosen by the mean of both.
    pub fn choose(&self, isa: Isa, queries: &PerModality<Vec<f32>>) -> Vec<Choice> {
        let Some(routers) = &self.routers else { return self.unrouted() };
        let mean: Vec<f32> = queries.image.iter().zip(&queries.text).map(|(v, t)| (v + t) * 0.5).collect();
        let of_group = |group: usize| {
            let query = if self.shape.groups == 1 { &mean } else { &queries[self.modality(group)] };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 experts with 2 slots in each of 2 groups of a target, width 2. The factor in slot s of expert e of
    /// group g is [100 g + 10 e + s, 0] in A and its negative in B.
    fn bank(routers: Option<Routers>) -> FactorBank {
        let shape = BankShape { groups: 2, experts: 3, rank: 2, slots: 2, hidden: 2 };
        let slots =
            (0..6).flat_map(|group| (0..3).flat_map(move |expert| (0..2).map(move |slot| (100 * group + 10 * expert + slot) as f32)));
        let a: Vec<f32> = slots.flat_map(|number| [number, 0.0]).collect();
        let b = a.iter().map(|x| -x).collect();
        FactorBank::new(shape, 1.5, a, b, routers)
    }

    /// W_A, W_B and the biases are zero but for what a test sets.
    fn routers() -> Routers {
        let zeros = |n: usize| vec![0.0; n];
        let weight = || Numbers::F32(zeros(6 * 3 * 2));
        Routers { a: weight(), bias_a: zeros(6 * 3), b: weight(), bias_b: zeros(6 * 3), table: zeros(6 * 2 * 3 * 3) }
    }

    fn choice(bank: &FactorBank, image: [f32; 2], text: [f32; 2], group: usize) -> [Vec<u32>; 2] {
        let queries = PerModality { image: image.to_vec(), text: text.to_vec() };
        let Choice { a, b } = bank.choose(Isa::detect(), &queries).swap_remove(group);
        [a, b]
    }

    #[test]
    fn a_bank_has_the_dimensions_that_it_was_made_with() {
        let bank = bank(None);
        assert_eq!((bank.alpha(), bank.pairs(), bank.shape().all_groups()), (1.5, 4, 6));
        assert!(bank.routers().is_none());
        assert_eq!(bank.factor_numbers().map(|numbers| numbers.to_f32()[2 * 7]), [101.0, -101.0]);
        let modalities = (0..6).map(|group| bank.modality(group));
        assert!(modalities.eq([Modality::ALL, Modality::ALL, Modality::ALL].concat()));
    }

    #[test]
    #[should_panic(expected = "factors do not fill")]
    fn factors_that_do_not_fill_the_shape_are_refused() {
        let shape = BankShape { groups: 1, experts: 2, rank: 1, slots: 1, hidden: 2 };
        FactorBank::new(shape, 1.0, vec![0.0; 12], vec![0.0; 11], None);
    }

    #[test]
    fn the_ith_factor_is_slot_i_of_the_ith_chosen_expert() {
        let bank = bank(None);
        let chosen = Choice { a: vec![2, 0], b: vec![1, 2] };
        let first = |factors: Vec<NumbersRef>| {
            let mut out = [0.0; 2];
            factors.into_iter().map(|factor| (factor.widen(&mut out), out[0]).1).collect::<Vec<f32>>()
        };
        assert_eq!(first(bank.a_factors(4, &chosen).collect()), [420.0, 401.0]);
        assert_eq!(first(bank.b_factors(4, &chosen).collect()), [-410.0, -421.0]);
    }

    #[test]
    fn without_routers_every_group_uses_its_first_experts() {
        let bank = bank(None);
        assert_eq!(bank.unrouted(), vec![Choice { a: vec![0, 1], b: vec![0, 1] }; 6]);
        assert_eq!(choice(&bank, [1.0, 0.0], [0.0, 1.0], 5), [[0, 1], [0, 1]]);
    }

    #[test]
    fn experts_are_chosen_by_the_query_of_the_group_s_modality_and_the_bias() {
        // Group 3 is of the second modality. Expert 2 answers the first coordinate, and expert 1 has a bias.
        let mut routers = routers();
        let weight = |at: usize, value: f32| Numbers::F32((0..36).map(|i| if i == at { value } else { 0.0 }).collect());
        routers.a = weight((3 * 3 + 2) * 2, 1.0);
        routers.bias_a[3 * 3 + 1] = 0.5;
        routers.b = weight((3 * 3 + 2) * 2, 1.0);
        routers.bias_b[3 * 3 + 1] = 0.5;
        let bank = bank(Some(routers));
        let second = |of_its_modality, of_the_other| match bank.modality(3) {
            Modality::Image => choice(&bank, of_its_modality, of_the_other, 3),
            Modality::Text => choice(&bank, of_the_other, of_its_modality, 3),
        };
        assert_eq!(second([1.0, 0.0], [-9.0, 0.0]), [[2, 1], [2, 1]]);
        assert_eq!(second([0.2, 0.0], [9.0, 9.0]), [[1, 2], [1, 2]], "the bias is larger than the product");
        assert_eq!(choice(&bank, [1.0, 0.0], [1.0, 0.0], 2), [[0, 1], [0, 1]], "the routers of other groups are zero");
    }

    #[test]
    fn the_chosen_a_factors_and_their_places_add_to_the_scores_of_b() {
        let mut routers = routers();
        // In group 1, the A choice is [2, 0]. Row (place, expert) of the table of the group raises one B expert.
        routers.bias_a[3 + 2] = 2.0;
        routers.bias_a[3] = 1.0;
        let row = |place: usize, expert: usize| ((2 + place) * 3 + expert) * 3;
        routers.table[row(0, 2) + 2] = 3.0;
        routers.table[row(1, 0) + 1] = 5.0;
        // Rows of experts that are not chosen at that place.
        routers.table[row(1, 2)] = 50.0;
        routers.table[row(0, 0)] = 50.0;
        assert_eq!(choice(&bank(Some(routers.clone())), [0.0; 2], [0.0; 2], 1), [[2, 0], [1, 2]]);
        // Both terms of the score of B are softmaxes, of at most 1 each: 0.12 + 0.91 for expert 2, 0.88 + 0.05 for expert 1.
        routers.bias_b[3 + 2] = 3.0;
        assert_eq!(choice(&bank(Some(routers)), [0.0; 2], [0.0; 2], 1), [[2, 0], [2, 1]]);
    }

    #[test]
    fn another_number_format_changes_the_factors_and_the_routers_but_not_the_choice() {
        let mut routers = routers();
        routers.a = Numbers::F32((0..36).map(|i| (i % 5) as f32).collect());
        let plain = bank(Some(routers));
        let half = plain.clone().in_precision(Precision::Bf16);
        assert!(half.factor_numbers().iter().all(|numbers| matches!(numbers, Numbers::Bf16(_))));
        assert!(half.routers().is_some_and(|routers| matches!((&routers.a, &routers.b), (Numbers::Bf16(_), Numbers::Bf16(_)))));
        for group in 0..6 {
            assert_eq!(choice(&half, [1.0, 0.5], [2.0, -1.0], group), choice(&plain, [1.0, 0.5], [2.0, -1.0], group));
        }
    }
}
