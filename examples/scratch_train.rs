use std::{ops::ControlFlow, path::PathBuf, sync::Arc};
use candle_core::Device;
use clap::Parser;
use delo::{delo::*, delo::partition::KeyRule, engine::Engine, input::{InputProcessor, Limits}, model_dir::ModelDir, train::*, vilt::Vilt};
#[derive(Parser)]
struct A { #[arg(long, value_delimiter=',')] tasks: Vec<usize>, #[arg(long)] out: PathBuf, #[arg(long, default_value="parts@3")] signal: String, #[arg(long, default_value_t=0)] seed: u64, #[arg(long)] table: Option<PathBuf>, #[command(flatten)] s: Settings }
fn main() {
    let mut a = A::parse(); a.s.seed = a.seed;
    let vilt = Arc::new(Vilt::load(&ModelDir::Embedded, &Device::Cpu).unwrap());
    let p = InputProcessor::load(&ModelDir::Embedded, vilt.config.patch_size, vilt.config.max_position_embeddings, Limits::default()).unwrap();
    let engine = Engine::new(vilt, p.dummy_text().to_vec());
    let data = Dataset::open(std::path::Path::new("data/emoji-cmml")).unwrap();
    let missing = match &a.table { Some(t) => MissingTable::read(t, &data).unwrap(), None => MissingTable::draw(&data, 0.7, MissingKind::Both, a.seed).unwrap() };
    let (mut right, mut total, mut sum) = (0.0, 0.0, 0.0);
    for &t in &a.tasks {
        let key = KeyRule { metric: Metric::Whitened, signal: a.signal.parse().unwrap(), plain_signal: KeySignal::Pooled, plain_average: KeyAverage::Mean };
        let session = Session { engine: &engine, processor: &p, backbone: "emoji-mini".into(), data: &data, missing: &missing, task: t, settings: &a.s, key };
        let name = &data.tasks[t].name;
        let outputs = Outputs { artifact: a.out.join(format!("{t}-{name}.safetensors")), log: a.out.join(format!("{t}.jsonl")), force: true, resume: false, checkpoint_every: usize::MAX, cache_bytes: 4 << 30, created: "2026-11-24T00:00:00Z".into() };
        let mut last = std::time::Instant::now();
        let r = train(&session, &outputs, &mut |e| { if let Event::Step { record, steps } = e { if last.elapsed().as_secs() > 20 { last = std::time::Instant::now(); eprintln!("{t} {}/{steps} {:.3}s/step loss {:.3}", record.step, record.seconds, record.loss); } } ControlFlow::Continue(()) }).unwrap();
        let n = data.rows(t, Split::Val).len() as f64;
        right += n * r.validation.all.unwrap(); total += n; sum += r.validation.all.unwrap();
        println!("task {t} {name}: {:.1}s {} steps val {:?}", r.seconds, r.steps, r.validation);
    }
    println!("TOTAL val micro {:.2} macro {:.2}", right / total, sum / a.tasks.len() as f64);
}
