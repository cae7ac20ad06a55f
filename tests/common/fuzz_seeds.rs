//! The inputs that fuzzing starts from: small, and each of another kind.
use std::io::Cursor;
use std::path::Path;

use delo_model::partition::{BackboneRecord, KeyRule, PartitionMeta, to_bytes};
use delo_model::{
    DualPromptSpec, KeyAverage, KeySignal, L2pSpec, Layout, LinearSpec, LoraSpec, Method, Metric, PoolSpec, SessionKeys, TaskModel,
};
use delo_proto::load_partition_request::Source;
use delo_proto::{ClassifyBatchRequest, ClassifyRequest, LoadPartitionRequest, ReportOutcomeRequest};
use image::codecs::gif::GifEncoder;
use image::{DynamicImage, Frame, ImageFormat, Rgba, RgbaImage};
use jpeg_encoder::{ColorType, Encoder};
use prost::Message;

use crate::promises::backbone;

/// A file's name and its bytes.
type Seeds = Vec<(String, Vec<u8>)>;

fn repository(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every type and depth that is decoded, small; and some that are damaged.
pub fn images() -> Seeds {
    let picture = RgbaImage::from_fn(17, 12, |x, y| Rgba([(x * 15) as u8, (y * 20) as u8, (x * y) as u8, (255 - x * 9) as u8]));
    let picture = DynamicImage::ImageRgba8(picture);
    let png = |image: DynamicImage| encoded(&image, ImageFormat::Png);
    let mut seeds: Seeds = [
        ("rgb.png", png(picture.to_rgb8().into())),
        ("rgba.png", png(picture.clone())),
        ("grey.png", png(picture.to_luma8().into())),
        ("grey-alpha.png", png(picture.to_luma_alpha8().into())),
        ("grey-16.png", png(picture.to_luma16().into())),
        ("rgb-16.png", png(picture.to_rgb16().into())),
        ("rgba-16.png", png(picture.to_rgba16().into())),
        ("rgb.bmp", encoded(&picture.to_rgb8().into(), ImageFormat::Bmp)),
        ("lossless.webp", encoded(&picture, ImageFormat::WebP)),
        ("baseline.jpg", jpeg(ColorType::Rgb, 3, false)),
        ("progressive.jpg", jpeg(ColorType::Rgb, 3, true)),
        ("grey.jpg", jpeg(ColorType::Luma, 1, false)),
        ("cmyk.jpg", jpeg(ColorType::Cmyk, 4, false)),
        ("ycck.jpg", jpeg(ColorType::CmykAsYcck, 4, false)),
        ("animated.gif", animation(&picture.to_rgba8())),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into();
    let fixtures = [
        "animated.webp",
        "china-palette.bmp",
        "coffee-palette-alpha.png",
        "emoji-transparent.gif",
        "hopper-bilevel.png",
        "jpeg-no-end-zeros.jpg",
        "jpeg-no-huffman-tables.jpg",
        "jpeg-ycc-adobe-3.jpg",
        "orientation-6.jpg",
        "orientation-6.webp",
    ];
    seeds.extend(fixtures.map(|name| (name.to_owned(), repository(&format!("tests/fixtures/input/{name}")))));
    seeds.extend(odd_images());
    let cut = |name: &str| {
        let (_, bytes) = seeds.iter().find(|(n, _)| n == name).unwrap();
        (format!("damaged-{name}"), bytes[..bytes.len() * 2 / 3].to_vec())
    };
    let damaged = ["rgba-16.png", "progressive.jpg", "lossless.webp", "rgb.bmp"].map(cut);
    seeds.extend(damaged);
    seeds
}

/// Unusual files of every type, each with a part that no other seed has.
fn odd_images() -> Seeds {
    #[derive(serde::Deserialize)]
    struct Odd {
        name: String,
        file: String,
    }
    const NAMES: &[&str] = &[
        "jpeg/orientation->-long-count-2",
        "jpeg/segments-exif-none-xmp-6",
        "png/palette-of-4-bytes",
        "png/type-3-2-bits-interlaced",
        "png/palette-alpha",
        "png/transparent-rgb-16-bits",
        "png/apng",
        "png/orientation-raw-packed",
        "png/orientation-xmp-packed",
        "png/no-end",
        "gif/screen-1x1-offset-transparent",
        "gif/interlaced-offset",
        "gif/local-palette-alone",
        "gif/extension-xmp",
        "webp/lossy-alpha",
        "webp/lossless-alpha",
        "webp/orientation-exif-none-xmp-6",
        "webp/animated-lossy-alpha-alpha-flag-small-frame",
        "bmp/header-12-4-bits",
        "bmp/header-64-8-bits",
        "bmp/masks-bgra-header-56",
        "bmp/masks-565-header-40",
        "bmp/rle8-literal",
        "bmp/rle8-jump",
        "bmp/rle4-mixed",
    ];
    let files: Vec<Odd> = serde_json::from_slice(&repository("tests/fixtures/input/odd.json")).unwrap();
    let bytes = |odd: &Odd| (0..odd.file.len()).step_by(2).map(|at| u8::from_str_radix(&odd.file[at..at + 2], 16).unwrap()).collect();
    let seed = |name: &&str| {
        let odd = files.iter().find(|odd| odd.name == *name).unwrap_or_else(|| panic!("no {name}"));
        (name.replace('/', "-").replace('>', "big"), bytes(odd))
    };
    NAMES.iter().map(seed).collect()
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn jpeg(colours: ColorType, channels: usize, progressive: bool) -> Vec<u8> {
    let (width, height) = (19u16, 13u16);
    let pixels: Vec<u8> = (0..usize::from(width) * usize::from(height) * channels).map(|i| (i * 7) as u8).collect();
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 60);
    encoder.set_progressive(progressive);
    encoder.encode(&pixels, width, height, colours).unwrap();
    bytes
}

fn animation(picture: &RgbaImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    encoder.encode_frames([picture.clone(), picture.clone()].map(Frame::new)).unwrap();
    drop(encoder);
    bytes
}

/// Scripts, accents in two forms, controls, what looks like a special token, and words that are cut into
/// pieces.
pub fn texts() -> Seeds {
    let texts = [
        ("plain", "A cat sits on the mat, 2 dogs don't."),
        ("accents", "Crème brûlée, naïve; e\u{301}a\u{308}o\u{327}"),
        ("chinese", "圣诞节快乐 新年"),
        ("mixed", "Привет שלום مرحبا ไทย 한국어 ひらがな"),
        ("emoji", "👩‍👩‍👧‍👦🏳️‍🌈🇨🇭 ❤\u{fe0f}"),
        ("controls", "a\0b\u{7f}c\u{200b}d\u{feff}e\u{202e}f\r\n\t"),
        ("special", "[CLS] [SEP] [MASK] [PAD] [UNK]"),
        ("pieces", "antidisestablishmentarianism ##ing Donaudampfschifffahrt"),
        ("long-word", &"x".repeat(300)),
        ("empty", ""),
        ("blank", " \u{3000}\t"),
        ("edges", "\u{10ffff}\u{e000}\u{d7ff}\u{0}\u{80}"),
    ];
    texts.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).into()
}

/// Small partitions of both layouts, and damaged ones.
pub fn artifacts() -> Seeds {
    let spec = |layout, experts, rank, first_adapted_layer| {
        let config = &backbone().config;
        let (layers, hidden) = (config.num_hidden_layers, config.hidden_size);
        Method::Delo {
            pools: PoolSpec {
                layout,
                experts,
                rank,
                alpha: 2.0,
                first_adapted_layer,
                layers,
                hidden,
                cross_modal_guide: true,
                modality_pools: true,
            },
        }
    };
    let (layers, hidden) = (backbone().config.num_hidden_layers, backbone().config.hidden_size);
    let lora = Method::Lora { lora: LoraSpec { rank: 2, alpha: 1.0, first_adapted_layer: 1, layers, hidden } };
    let linear = Method::Linear { linear: LinearSpec { layers, hidden } };
    let l2p = Method::L2p { l2p: L2pSpec { pool: 3, length: 2, chosen: 2, layers, hidden } };
    let dualprompt = Method::DualPrompt { dualprompt: DualPromptSpec { lengths: vec![2, 1], layers, hidden } };
    let one = artifact(spec(Layout::RankOne, 2, 1, 1), Metric::Whitened, false);
    let (mut flipped, cut) = (one.clone(), one[..one.len() / 2].to_vec());
    *flipped.last_mut().unwrap() ^= 1;
    let huge = [&u64::MAX.to_le_bytes(), &one[8..]].concat();
    [
        ("rank-one", one),
        ("slotted", artifact(spec(Layout::Slotted, 2, 2, 1), Metric::Plain, true)),
        ("head-alone", artifact(spec(Layout::RankOne, 1, 1, 2), Metric::Plain, false)),
        ("every-layer", artifact(spec(Layout::RankOne, 1, 1, 0), Metric::Plain, true)),
        ("lora", artifact(lora, Metric::Whitened, false)),
        ("linear", artifact(linear, Metric::Plain, true)),
        ("dualprompt", artifact(dualprompt, Metric::Plain, false)),
        ("l2p", artifact(l2p, Metric::Plain, false)),
        ("damaged-flipped", flipped),
        ("damaged-cut", cut),
        ("damaged-length", huge),
        ("damaged-empty", Vec::new()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

fn artifact(method: Method, metric: Metric, multi_label: bool) -> Vec<u8> {
    let signal = KeySignal::MeanQuery { layer: 1 };
    let width = signal.width(method.backbone().hidden);
    let mut keys = SessionKeys::default();
    for signal in KeySignal::plain(method.backbone().layers) {
        keys.mean.insert(signal, vec![0.5; signal.width(method.backbone().hidden)]);
    }
    keys.moments.insert(signal, vec![1.0; width * (width + 1) / 2]);
    let model = TaskModel::init(method.clone(), 2, 1).unwrap();
    let meta = PartitionMeta {
        task: "animals".to_owned(),
        labels: ["cat", "dog"].map(str::to_owned).into(),
        multi_label,
        targets: method.target_names(),
        method,
        key: KeyRule { metric, signal, plain_signal: KeySignal::Pooled, plain_average: KeyAverage::Mean, temperature: None },
        analytic: None,
        dummy_image: [32, 32],
        special_tokens: Some(false),
        text_positions: None,
        backbone: BackboneRecord { fingerprint: backbone().fingerprint.clone(), name: "tiny".to_owned() },
        training: serde_json::json!({"epochs": 1}),
        data: serde_json::Value::Null,
        seed: 1,
        metrics: [("accuracy".to_owned(), 0.5)].into(),
        created: "2026-01-01T00:00:00Z".to_owned(),
        delo_version: "0.1.0".to_owned(),
    };
    to_bytes(&meta, &model, &keys, None).unwrap()
}

/// An empty registry, one with artifacts, and ones that say what cannot be.
pub fn manifests() -> Seeds {
    let (one, two) = ("1".repeat(64), "2".repeat(64));
    let entry = |sha256: &str, task: &str, more: &str| {
        format!(r#"{{"sha256":"{sha256}","bytes":9,"task":"{task}","checksum":"c","backbone":"b","created":"2026","pushed":"2026"{more}}}"#)
    };
    let signature = format!(r#","signature":"{}""#, "0a".repeat(64));
    let manifest = |revision: &str, artifacts: &[String], live: &str| {
        let artifacts = artifacts.join(",");
        format!(
            r#"{{"format":"delo-registry","version":1,"revision":{revision},"updated":"2026","artifacts":[{artifacts}],"live":{{{live}}}}}"#
        )
    };
    let live = format!(r#""a":"{one}""#);
    [
        ("empty", manifest("0", &[], "")),
        ("one", manifest("1", &[entry(&one, "a", "")], &live)),
        ("signed", manifest("2", &[entry(&one, "a", &signature), entry(&two, "b", "")], &live)),
        ("twice", manifest("3", &[entry(&one, "a", ""), entry(&one, "b", "")], &live)),
        ("live-of-another", manifest("4", &[entry(&one, "b", "")], &live)),
        ("path", manifest("5", &[entry("../../etc/passwd", "a", "")], "")),
        ("negative", manifest("-1", &[], "")),
        ("newer", manifest("1", &[], "").replace(r#""version":1"#, r#""version":2"#)),
        ("cut", manifest("1", &[entry(&one, "a", "")], &live)[..150].to_owned()),
        ("nothing", String::new()),
    ]
    .map(|(name, text)| (name.to_owned(), text.into_bytes()))
    .into()
}

/// A byte for the kind of message, then the message.
pub fn requests() -> Seeds {
    let picture = images().swap_remove(0).1;
    let text = ClassifyRequest { text: Some("a cat".to_owned()), request_id: "r-1".to_owned(), top_k: Some(3), ..Default::default() };
    let both = ClassifyRequest { image: Some(picture.into()), task: "animals".to_owned(), explain: true, ..text.clone() };
    let uri = |uri: &str| LoadPartitionRequest { source: Some(Source::Uri(uri.to_owned())), ..Default::default() }.encode_to_vec();
    let upload = LoadPartitionRequest { source: Some(Source::Artifact(vec![1, 2, 3].into())), ..Default::default() };
    let outcome = ReportOutcomeRequest {
        request_id: "r-1".to_owned(),
        true_task: "animals".to_owned(),
        true_labels: vec!["cat".to_owned()],
        ..Default::default()
    };
    let seeds: [(&str, u8, Vec<u8>); 16] = [
        ("text", 0, text.encode_to_vec()),
        ("both", 0, both.encode_to_vec()),
        ("empty", 0, Vec::new()),
        ("batch", 1, ClassifyBatchRequest { requests: vec![text, both, ClassifyRequest::default()] }.encode_to_vec()),
        ("path", 2, uri("a")),
        ("path-parent", 2, uri("../secret")),
        ("path-inner-parent", 2, uri("a/../../secret")),
        ("path-link", 2, uri("out/secret")),
        ("path-absolute", 2, uri("/etc/hostname")),
        ("path-file", 2, uri("file:///etc/hostname")),
        ("path-scheme", 2, uri("http://127.0.0.1/a")),
        ("upload", 2, upload.encode_to_vec()),
        ("outcome", 3, outcome.encode_to_vec()),
        ("timeout", 4, b"99999999H".to_vec()),
        ("timeout-short", 4, b"5m".to_vec()),
        ("timeout-wrong", 4, "1é".into()),
    ];
    seeds.map(|(name, kind, message)| (name.to_owned(), [&[kind], message.as_slice()].concat())).into()
}

/// The files that ship, single settings, and settings of the environment.
pub fn configurations() -> Seeds {
    let environment = "\n--- environment ---\nDELO_BATCHING__MAX_TOKENS=4096\nDELO_ADMIN__LISTEN=off\n";
    let seeds: [(&str, Vec<u8>); 10] = [
        ("default.toml", repository("migrations-free-config/default.toml")),
        ("laptop.toml", repository("migrations-free-config/examples/laptop.toml")),
        ("environment", environment.into()),
        ("both", format!("[model]\nthreads = 2\n{environment}").into()),
        ("unknown", b"[batching]\nmax_tokns = 1".to_vec()),
        ("wrong-type", b"[batching]\nmax_tokens = \"many\"\n[deadline]\nmax_seconds = nan".to_vec()),
        ("negative", b"[batching]\nmax_tokens = -9223372036854775808".to_vec()),
        ("unclosed", b"[batching".to_vec()),
        ("inline", b"server = {listen = \"[::1]:0\", max_message_bytes = 0x10}\n\"a.b\".c = [[1], {}]".to_vec()),
        ("environment-deep", b"\n--- environment ---\nDELO_A__B__C__D=1\nDELO___=2\nDELO_INPUT__LIMITS__MAX_SIDE=1e9\n".to_vec()),
    ];
    seeds.map(|(name, text)| (name.to_owned(), text)).into()
}
