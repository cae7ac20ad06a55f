//! Which vector instructions the processor has, and running a piece of code compiled for them.
use std::fmt;
use std::str::FromStr;

/// Sets of vector instructions that kernels are written for; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What the compiler makes of plain Rust: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with bf16 and int8 dot products (BF16, VNNI).
    Avx512Bf16,
    /// Matrix tiles in bf16 and int8.
    Amx,
}

impl Isa {
    /// All of them, the least first.
    pub const ALL: [Isa; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The best that this processor and operating system offer.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let dot = avx512 && is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
            if dot && super::micro::amx::available() {
                return Self::Amx;
            }
            if dot {
                return Self::Avx512Bf16;
            }
            if avx512 {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// The best that this processor has, at most `limit`.
    pub fn at_most(limit: Option<Isa>) -> Self {
        let best = Self::detect();
        limit.map_or(best, |limit| best.min(limit))
    }

    /// Every set that this processor has.
    pub fn available() -> impl Iterator<Item = Isa> {
        let best = Self::detect();
        Self::ALL.into_iter().filter(move |isa| *isa <= best)
    }

    /// Runs `f`. It and those functions that it calls which are `#[inline(always)]` are compiled for these
    /// instructions.
    ///
    /// # Panics
    /// Where this processor lacks them.
    #[inline(always)]
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
            fn avx512_bf16<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            if self >= Self::Avx512Bf16 {
                assert!(is_x86_feature_detected!("avx512bf16"), "this processor has no AVX-512 BF16");
                // SAFETY: the assertion checks BF16; see below for the others.
                return unsafe { avx512_bf16(f) };
            }
            if self == Self::Avx512 {
                assert!(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl"), "this processor has no AVX-512");
                // SAFETY: the assertion checks F and VL. A set of instructions that is used comes from
                // `detect`, or is limited to what it gives, and it gives this one only with BW and DQ.
                return unsafe { avx512(f) };
            }
            if self == Self::Avx2 {
                assert!(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"), "this processor has no AVX2");
                // SAFETY: the assertion checks both.
                return unsafe { avx2(f) };
            }
        }
        f()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        })
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(|isa| isa.to_string());
        let found = Self::ALL.into_iter().zip(&names).find(|(_, name)| *name == text);
        found.map(|(isa, _)| isa).ok_or_else(|| format!("{text:?} is no set of instructions: give {}", names.join(", ")))
    }
}
