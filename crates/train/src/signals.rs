//! Signals of the frozen backbone, computed once and kept: whatever a session learns, the frozen layers give a
//! sample the same numbers, in any batch, so that the runs of one checkpoint can share them.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use delo_engine::Engine;
use delo_model::input::Sample;
use delo_model::routing::keys::{KeySignal, Signals};

/// Bytes of a digest.
const DIGEST: usize = 32;

/// A folder of signals: a file for each sample and signal, named after all that decides its numbers, which are
/// the sample, the checkpoint, the stand-ins for missing modalities, and what multiplies. Several processes may
/// use it at once.
///
/// The kernels of another version of this program may compute other numbers: begin with an empty folder then.
#[derive(Debug)]
pub struct SignalStore(PathBuf);

impl SignalStore {
    /// The store of a folder, which is made where there is none.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self(folder.to_owned()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(&name[..2]).join(&name[2..])
    }

    /// A signal of `width` numbers; `None` where there is no whole one.
    fn read(&self, name: &str, width: usize) -> Option<Vec<f32>> {
        let bytes = std::fs::read(self.path(name)).ok()?;
        let (values, digest) = bytes.split_at_checked(4 * width)?;
        if digest != Sha256::digest(values).as_slice() {
            return None;
        }
        values.chunks_exact(4).map(|value| Some(f32::from_le_bytes(value.try_into().ok()?))).collect()
    }

    /// Keeps a signal, if the file system lets it: without the file, it is computed again.
    fn write(&self, name: &str, values: &[f32]) {
        static WRITTEN: AtomicU64 = AtomicU64::new(0);
        let mut bytes = Vec::with_capacity(4 * values.len() + DIGEST);
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes.extend(Sha256::digest(&bytes));
        let path = self.path(name);
        let temporary = path.with_extension(format!("{}-{}", std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed)));
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&temporary, bytes));
        if written.and_then(|()| std::fs::rename(&temporary, &path)).is_err() {
            std::fs::remove_file(&temporary).unwrap_or_default();
        }
    }
}

/// The `wanted` signals of some samples, `[samples, width]` each; a missing image is `dummy_image` pixels high and
/// wide. What `store` has is not computed, and what is computed goes there.
///
/// # Errors
/// A failed forward pass.
pub(crate) fn signals(
    engine: &Engine,
    store: Option<&SignalStore>,
    samples: &[Sample],
    dummy_image: [usize; 2],
    wanted: &[KeySignal],
) -> candle_core::Result<Signals> {
    let compute = |samples: &[&Sample]| engine.signals(&engine.embed(samples, dummy_image)?, wanted);
    let Some(store) = store else { return compute(&samples.iter().collect::<Vec<_>>()) };
    let common = common(engine, dummy_image);
    let digests: Vec<Sha256> = samples.iter().map(|sample| with_sample(common.clone(), sample)).collect();
    let name = |sample: usize, signal: KeySignal| format!("{:x}", digests[sample].clone().chain_update(signal.to_string()).finalize());
    let hidden = engine.backbone().config.hidden_size;
    let read = |sample: usize| {
        let signals = wanted.iter().map(|&signal| store.read(&name(sample, signal), signal.width(hidden)));
        signals.collect::<Option<Vec<_>>>()
    };
    let mut rows: Vec<Option<Vec<Vec<f32>>>> = (0..samples.len()).map(read).collect();
    let absent: Vec<usize> = (0..samples.len()).filter(|&sample| rows[sample].is_none()).collect();
    if !absent.is_empty() {
        let computed = compute(&absent.iter().map(|&sample| &samples[sample]).collect::<Vec<_>>())?;
        for &signal in wanted {
            for (&sample, values) in absent.iter().zip(computed[&signal].to_vec2::<f32>()?) {
                store.write(&name(sample, signal), &values);
                rows[sample].get_or_insert_default().push(values);
            }
        }
    }
    let of_signal = |(at, &signal): (usize, &KeySignal)| {
        let values: Vec<f32> = rows.iter().flatten().flat_map(|signals| &signals[at]).copied().collect();
        Ok((signal, Tensor::from_vec(values, (samples.len(), signal.width(hidden)), &Device::Cpu)?))
    };
    wanted.iter().enumerate().map(of_signal).collect()
}

/// What decides the numbers of every sample.
fn common(engine: &Engine, dummy_image: [usize; 2]) -> Sha256 {
    let backbone = engine.backbone();
    let [height, width] = dummy_image;
    Sha256::new().chain_update(format!(
        "{}\n{}\n{} text positions\n{:?}\n{height} x {width}\n",
        backbone.fingerprint,
        engine.kernel(),
        backbone.config.max_position_embeddings,
        engine.dummy_text(),
    ))
}

fn with_sample(mut digest: Sha256, sample: &Sample) -> Sha256 {
    match &sample.text {
        Some(tokens) => digest.update(format!("{tokens:?}\n")),
        None => digest.update("no text\n"),
    }
    match &sample.image {
        Some(pixels) => {
            digest.update(format!("{} x {}\n", pixels.height, pixels.width));
            let bytes: Vec<u8> = pixels.data.iter().flat_map(|value| value.to_le_bytes()).collect();
            digest.update(bytes);
        }
        None => digest.update("no image\n"),
    }
    digest
}

#[cfg(test)]
mod tests {
    use delo_fixtures::{engine, random_sample};

    use super::*;

    fn samples() -> Vec<Sample> {
        let lacking = |text: bool, seed| {
            let sample = random_sample(seed);
            if text { Sample { text: None, ..sample } } else { Sample { image: None, ..sample } }
        };
        vec![random_sample(1), lacking(true, 2), lacking(false, 3), random_sample(4)]
    }

    const WANTED: [KeySignal; 3] = [KeySignal::Pooled, KeySignal::Parts { layer: 3 }, KeySignal::Summary];

    fn bits(signals: &Signals) -> Vec<(KeySignal, Vec<Vec<u32>>)> {
        let row = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect();
        signals.iter().map(|(signal, values)| (*signal, values.to_vec2::<f32>().unwrap().into_iter().map(row).collect())).collect()
    }

    #[test]
    fn kept_signals_are_those_that_are_computed_whatever_the_batch_and_the_other_signals_were() {
        let (folder, engine, samples) = (tempfile::tempdir().unwrap(), engine(), samples());
        let (store, dummy) = (SignalStore::open(folder.path()).unwrap(), engine.default_dummy_image());
        let computed = bits(&signals(engine, None, &samples, dummy, &WANTED).unwrap());
        for sample in &samples[1..] {
            for signal in WANTED {
                signals(engine, Some(&store), std::slice::from_ref(sample), dummy, &[signal]).unwrap();
            }
        }
        assert_eq!(bits(&signals(engine, Some(&store), &samples, dummy, &WANTED).unwrap()), computed);
        let other = signals(engine, Some(&store), &samples[..1], [16, 8], &WANTED[..1]).unwrap();
        assert_eq!(bits(&other), bits(&signals(engine, None, &samples[..1], [16, 8], &WANTED[..1]).unwrap()));
    }

    #[test]
    fn what_is_kept_is_read_and_a_damaged_file_is_computed_again() {
        let (folder, engine, samples) = (tempfile::tempdir().unwrap(), engine(), samples());
        let (store, dummy) = (SignalStore::open(folder.path()).unwrap(), engine.default_dummy_image());
        let of = |store: Option<&SignalStore>| signals(engine, store, &samples[..1], dummy, &[KeySignal::Pooled]).unwrap();
        let computed = bits(&of(Some(&store)));
        let name = format!("{:x}", with_sample(common(engine, dummy), &samples[0]).chain_update(KeySignal::Pooled.to_string()).finalize());
        let mut other = store.read(&name, engine.backbone().config.hidden_size).unwrap();
        other[0] = 42.0;
        store.write(&name, &other);
        assert_eq!(of(Some(&store))[&KeySignal::Pooled].to_vec2::<f32>().unwrap(), [other]);
        let mut bytes = std::fs::read(store.path(&name)).unwrap();
        bytes[0] ^= 1;
        std::fs::write(store.path(&name), &bytes).unwrap();
        assert_eq!(bits(&of(Some(&store))), computed);
        std::fs::write(store.path(&name), &bytes[..7]).unwrap();
        assert_eq!(bits(&of(Some(&store))), computed);
    }
}
