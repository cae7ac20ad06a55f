//! Samples of image files and texts agree with Hugging Face's `ViltImageProcessor` and `BertTokenizerFast`,
//! and bad input is refused cheaply. The fixtures are made by `tools/fixtures/input.py`, which also describes
//! how to compare other images.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use delo_model::input::{InputError, InputProcessor, Limits, Sample, TextReading};
use delo_model::model_dir::ModelDir;
use serde::Deserialize;

/// The largest allowed differences of channel values in 0..1, mean and maximum.
const MEAN_BAR: f64 = 0.5 / 255.0;
const MAX_BAR: f64 = 6.0 / 255.0;

fn repository(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(repository("tests/fixtures/input").join(name)).unwrap()
}

fn processor(limits: Limits) -> InputProcessor {
    InputProcessor::load(&ModelDir::Path(repository("models/emoji-mini")), 8, 40, limits).unwrap()
}

fn image(bytes: &[u8]) -> Result<Sample, InputError> {
    processor(Limits::default()).sample(Some(bytes), None)
}

#[derive(Deserialize)]
struct Images {
    configs: BTreeMap<String, Config>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Config {
    patch: usize,
    preprocessor: serde_json::Value,
}

#[derive(Deserialize)]
struct Case {
    file: String,
    config: String,
    height: usize,
    width: usize,
    step: usize,
    expected: String,
}

/// A checkpoint directory with the default tokenizer and these image settings.
fn checkpoint(preprocessor: &serde_json::Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(repository("models/emoji-mini/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    std::fs::write(dir.path().join("preprocessor_config.json"), preprocessor.to_string()).unwrap();
    dir
}

fn statistic(config: &serde_json::Value, name: &str, channel: usize) -> f64 {
    config[name].get(channel).map_or(0.5, |v| v.as_f64().unwrap())
}

#[test]
fn agrees_with_the_hugging_face_image_processor() {
    let folder = std::env::var_os("DELO_INPUT_FIXTURES").map_or_else(|| repository("tests/fixtures/input"), PathBuf::from);
    let images: Images = serde_json::from_slice(&std::fs::read(folder.join("images.json")).unwrap()).unwrap();
    assert!(!images.cases.is_empty());
    let loaded: BTreeMap<&str, (InputProcessor, &serde_json::Value)> = images
        .configs
        .iter()
        .map(|(name, config)| {
            let dir = checkpoint(&config.preprocessor);
            let processor = InputProcessor::load(&ModelDir::Path(dir.path().to_owned()), config.patch, 40, Limits::default()).unwrap();
            (name.as_str(), (processor, &config.preprocessor))
        })
        .collect();

    let (mut worst_mean, mut worst_max, mut failures) = ((0.0, String::new()), (0.0, String::new()), Vec::new());
    for case in &images.cases {
        let (processor, config) = &loaded[case.config.as_str()];
        let label = format!("{} with {}", case.file, case.config);
        let sample =
            processor.sample(Some(&std::fs::read(folder.join(&case.file)).unwrap()), None).unwrap_or_else(|e| panic!("{label}: {e}"));
        let pixels = sample.image.unwrap();
        assert_eq!((pixels.height, pixels.width), (case.height, case.width), "{label}");

        let expected = image::open(folder.join(&case.expected)).unwrap().into_rgb8();
        let (mut sum, mut max) = (0.0, 0.0f64);
        for (x, y, rgb) in expected.enumerate_pixels() {
            let (x, y) = (x as usize * case.step, y as usize * case.step);
            for channel in 0..3 {
                let value = f64::from(pixels.data[(channel * pixels.height + y) * pixels.width + x]);
                let value = value * statistic(config, "image_std", channel) + statistic(config, "image_mean", channel);
                let difference = (value - f64::from(rgb[channel]) / 255.0).abs();
                sum += difference;
                max = max.max(difference);
            }
        }
        let mean = sum / f64::from(3 * expected.width() * expected.height());
        println!("mean {:.3}/255  max {:.2}/255  {label}", mean * 255.0, max * 255.0);
        if mean > worst_mean.0 {
            worst_mean = (mean, label.clone());
        }
        if max > worst_max.0 {
            worst_max = (max, label.clone());
        }
        // Files of the repository in PNG, GIF or BMP must agree to the bit.
        let exact =
            std::env::var_os("DELO_INPUT_FIXTURES").is_none() && [".png", ".gif", ".bmp"].iter().any(|end| case.file.ends_with(end));
        if mean > MEAN_BAR || max > if exact { 0.01 / 255.0 } else { MAX_BAR } {
            failures.push(label);
        }
    }
    println!("worst mean {:.3}/255 ({}), worst max {:.2}/255 ({})", worst_mean.0 * 255.0, worst_mean.1, worst_max.0 * 255.0, worst_max.1);
    assert!(failures.is_empty(), "beyond mean 0.5/255 or max 6/255, or not exact where it should be: {failures:#?}");
}

/// A file that is unusual or slightly damaged, and the picture that Pillow decodes; `None` where Pillow
/// refuses it.
#[derive(Deserialize)]
struct Odd {
    name: String,
    file: String,
    #[serde(default)]
    width: usize,
    #[serde(default)]
    height: usize,
    rgb: Option<String>,
}

fn of_hex(digits: &str) -> Vec<u8> {
    digits.as_bytes().chunks_exact(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// A processor that gives the values of the picture unchanged, 0 to 255.
fn unscaled() -> InputProcessor {
    let dir = checkpoint(&serde_json::json!({"do_resize": false, "do_rescale": false, "do_normalize": false}));
    InputProcessor::load(&ModelDir::Path(dir.path().to_owned()), 1, 40, Limits::default()).unwrap()
}

/// Files that are decoded although Pillow refuses them, and why.
const DECODED_ONLY_HERE: &[(&str, &str)] = &[
    ("webp/no-chunk-flags-reserved", "a reserved flag has no meaning"),
    ("webp/unknown-chunk-between-alpha-and-pixels", "unknown chunks are skipped everywhere"),
    ("webp/alpha-then-lossy-without-vp8x", "its chunks are complete"),
    ("webp/two-pictures", "the first one counts"),
    ("bmp/masks-rgba-header-40", "any masks are read"),
    ("bmp/masks-rgba-header-52", "any masks are read"),
    ("bmp/rle8-ends-early", "in this format, the rest has the first colour"),
];

#[test]
fn odd_files_are_decoded_as_by_pillow_or_refused() {
    let path = std::env::var_os("DELO_ODD_IMAGES").map_or_else(|| repository("tests/fixtures/input/odd.json"), PathBuf::from);
    let files: Vec<Odd> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(files.len() > 100);
    let processor = unscaled();
    let mut failures = Vec::new();
    for odd in &files {
        let bytes = of_hex(&odd.file);
        let memory = processor.memory(Some(&bytes), None);
        let read = processor.sample(Some(&bytes), None);
        if let (Ok(_), Err(error)) = (&read, memory) {
            failures.push(format!("{}: read, but its memory is refused: {error}", odd.name));
        }
        match (read, &odd.rgb) {
            (Ok(sample), Some(rgb)) => {
                let pixels = sample.image.unwrap();
                if (pixels.width, pixels.height) != (odd.width, odd.height) {
                    failures.push(format!("{}: {} x {}, not {} x {}", odd.name, pixels.width, pixels.height, odd.width, odd.height));
                    continue;
                }
                let area = odd.width * odd.height;
                let expected = of_hex(rgb);
                let differences =
                    expected.iter().enumerate().map(|(i, &value)| (pixels.data[i % 3 * area + i / 3] - f32::from(value)).abs());
                let (sum, max) = differences.fold((0.0, 0.0f32), |(sum, max), difference| (sum + difference, max.max(difference)));
                let mean = sum / expected.len() as f32;
                let lossy = odd.name.starts_with("jpeg/") || odd.name.contains("lossy");
                if max > 0.0 && !lossy || mean > 0.5 || max > 6.0 {
                    failures.push(format!("{}: mean {mean}, max {max}", odd.name));
                }
            }
            (Err(error), Some(_)) => failures.push(format!("{}: {error}", odd.name)),
            (Ok(_), None) if !DECODED_ONLY_HERE.iter().any(|(name, _)| *name == odd.name) => {
                failures.push(format!("{}: decoded, but Pillow refuses it", odd.name))
            }
            (Ok(_), None) => {}
            (Err(error), None) => {
                assert_eq!(error.field(), "image");
                println!("{}: {error}", odd.name);
            }
        }
    }
    assert!(failures.is_empty(), "{} of {}: {failures:#?}", failures.len(), files.len());
}

/// For `tools/fixtures/image_parity.py`: writes for every file in the folder `DELO_DECODE` the decoded pixels
/// as NAME.ppm, or the reason for a failure as NAME.refused or NAME.panicked.
#[test]
#[ignore = "run by tools/fixtures/image_parity.py"]
fn a_folder_is_decoded_for_comparison() {
    let folder = PathBuf::from(std::env::var_os("DELO_DECODE").expect("DELO_DECODE names a folder of image files"));
    let as_they_are = serde_json::json!({"do_resize": false, "image_mean": 0, "image_std": 1});
    let dir = checkpoint(&as_they_are);
    let limits = Limits { max_patches: usize::MAX, ..Limits::default() };
    let processor = InputProcessor::load(&ModelDir::Path(dir.path().to_owned()), 1, 40, limits).unwrap();
    let files: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let beside = |end: &str| PathBuf::from(format!("{}.{end}", file.display()));
        match std::panic::catch_unwind(|| processor.sample(Some(&bytes), None)) {
            Err(_) => std::fs::write(beside("panicked"), "").unwrap(),
            Ok(Err(e)) => std::fs::write(beside("refused"), e.to_string()).unwrap(),
            Ok(Ok(sample)) => {
                let pixels = sample.image.unwrap();
                let plane = pixels.height * pixels.width;
                let mut ppm = format!("P6 {} {} 255\n", pixels.width, pixels.height).into_bytes();
                ppm.extend((0..3 * plane).map(|i| (pixels.data[i % 3 * plane + i / 3] * 255.0).round() as u8));
                std::fs::write(beside("ppm"), ppm).unwrap();
            }
        }
    }
}

#[derive(Deserialize)]
struct Texts {
    texts: Vec<String>,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    source: String,
    tokenizer_config: serde_json::Value,
    positions: usize,
    ids: Vec<Vec<u32>>,
}

fn tokenizer_json() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(repository("models/emoji-mini/tokenizer.json")).unwrap()).unwrap()
}

/// The default vocabulary in the older format, one token on each line.
fn vocab_txt() -> String {
    let json = tokenizer_json();
    let mut tokens: Vec<(u64, &str)> =
        json["model"]["vocab"].as_object().unwrap().iter().map(|(token, id)| (id.as_u64().unwrap(), token.as_str())).collect();
    tokens.sort_unstable();
    tokens.iter().map(|(_, token)| format!("{token}\n")).collect()
}

fn assert_ids(processor: &InputProcessor, texts: &[String], group: &Group) {
    for (text, expected) in texts.iter().zip(&group.ids) {
        let ids = match processor.sample(None, Some(text)) {
            Ok(sample) => sample.text.unwrap(),
            // A text without a token counts as missing.
            Err(InputError::NoWord) => processor.dummy_text().to_vec(),
            Err(e) => panic!("{text:?}: {e}"),
        };
        assert_eq!(&ids, expected, "{} {} at {} positions: {text:?}", group.source, group.tokenizer_config, group.positions);
    }
}

#[test]
fn agrees_with_the_hugging_face_tokenizer() {
    let fixture: Texts = serde_json::from_slice(&fixture("texts.json")).unwrap();
    let vocab = vocab_txt();
    for group in &fixture.groups {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), group.tokenizer_config.to_string()).unwrap();
        if group.source == "vocab.txt" {
            std::fs::write(dir.path().join("vocab.txt"), &vocab).unwrap();
        } else {
            std::fs::copy(repository("models/emoji-mini/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        }
        let processor = InputProcessor::load(&ModelDir::Path(dir.path().to_owned()), 8, group.positions, Limits::default()).unwrap();
        // As transformers reads special tokens by default.
        let processor = processor.with_special_tokens(true);
        assert_eq!(processor.vocab_size(), 30_522);
        assert_ids(&processor, &fixture.texts, group);
    }
}

#[test]
fn padding_and_truncation_of_the_tokenizer_file_are_overridden() {
    let fixture: Texts = serde_json::from_slice(&fixture("texts.json")).unwrap();
    let mut json = tokenizer_json();
    json["truncation"] = serde_json::json!({"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let processor = InputProcessor::load(&ModelDir::Path(dir.path().to_owned()), 8, 40, Limits::default()).unwrap();
    let processor = processor.with_special_tokens(true);
    assert_ids(&processor, &fixture.texts, &fixture.groups[0]);
    assert_eq!(processor.dummy_text(), [101, 102]);
}

#[test]
fn the_tokenizer_configuration_wins_over_the_tokenizer_file() {
    let fixture: Texts = serde_json::from_slice(&fixture("texts.json")).unwrap();
    for group in fixture.groups.iter().filter(|g| g.source == "vocab.txt" && g.positions == 40) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), group.tokenizer_config.to_string()).unwrap();
        std::fs::copy(repository("models/emoji-mini/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        let processor = InputProcessor::load(&ModelDir::Path(dir.path().to_owned()), 8, 40, Limits::default()).unwrap();
        let processor = processor.with_special_tokens(true);
        assert_ids(&processor, &fixture.texts, group);
    }
}

#[derive(Deserialize)]
struct Injected {
    texts: Vec<String>,
    groups: Vec<InjectedGroup>,
}

#[derive(Deserialize)]
struct InjectedGroup {
    source: String,
    tokenizer_config: serde_json::Value,
    added_tokens: Vec<serde_json::Value>,
    split_special_tokens: bool,
    ids: Vec<Vec<u32>>,
}

#[test]
fn special_tokens_in_a_text_are_words_as_with_split_special_tokens_of_transformers() {
    let fixture: Injected = serde_json::from_slice(&fixture("special_tokens.json")).unwrap();
    for group in &fixture.groups {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), group.tokenizer_config.to_string()).unwrap();
        if group.source == "vocab.txt" {
            std::fs::write(dir.path().join("vocab.txt"), vocab_txt()).unwrap();
        } else {
            let mut json = tokenizer_json();
            json["added_tokens"].as_array_mut().unwrap().extend(group.added_tokens.clone());
            std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        }
        let processor = InputProcessor::load(&ModelDir::Path(dir.path().to_owned()), 8, 40, Limits::default()).unwrap();
        assert!(!processor.special_tokens(), "the default");
        let processor = if group.split_special_tokens { processor } else { processor.with_special_tokens(true) };
        for (text, expected) in fixture.texts.iter().zip(&group.ids) {
            let ids = processor.sample(None, Some(text)).unwrap().text.unwrap();
            assert_eq!(&ids, expected, "{} split {}: {text:?}", group.source, group.split_special_tokens);
        }
    }
}

#[test]
fn a_tokenizer_that_does_not_split_at_punctuation_reads_special_tokens_as_words_too() {
    let mut json = tokenizer_json();
    json["pre_tokenizer"] = serde_json::json!({"type": "WhitespaceSplit"});
    json["normalizer"]["lowercase"] = false.into();
    json["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "[MASK]");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let load = || InputProcessor::load(&ModelDir::Path(dir.path().to_owned()), 8, 40, Limits::default()).unwrap();
    let ids = |processor: &InputProcessor| processor.sample(None, Some("a [SEP] cat [PAD] [MASK] [CLS]")).unwrap().text.unwrap();
    // 1037 "a", 4937 "cat", 100 [UNK], 102 [SEP], 0 [PAD], 103 [MASK], 101 [CLS].
    assert_eq!(ids(&load()), [101, 1037, 100, 4937, 100, 100, 100, 102]);
    assert_eq!(ids(&load().with_special_tokens(true)), [101, 1037, 102, 4937, 0, 103, 101, 102]);
}

#[test]
fn a_reading_counts_known_and_unknown_tokens_and_states_truncation() {
    let processor = processor(Limits::default());
    let reading = |text: &str| processor.preprocess(None, Some(text)).unwrap().text.unwrap();
    for (text, tokens, unknown_tokens, truncated) in [
        ("a cat", 2, 0, false),
        // Each of these two texts is one word that is not in the vocabulary.
        ("\u{1f600}", 1, 1, false),
        ("\u{1d4f9}\u{1d4f2}\u{1d503}\u{1d503}\u{1d4ea}", 1, 1, false),
        ("a \u{1f600} cat", 3, 1, false),
        // 38 tokens fit between [CLS] and [SEP].
        (&"cat ".repeat(38), 38, 0, false),
        (&"cat ".repeat(39), 38, 0, true),
        (&"\u{1f600} ".repeat(50), 38, 38, true),
        ("[UNK]", 4, 0, false),
    ] {
        let expected = TextReading { tokens, unknown_tokens, truncated };
        assert_eq!(reading(text), expected, "{text:?}");
        assert_eq!(expected.understood(), unknown_tokens < tokens);
    }
    let photo = fixture("chelsea.png");
    assert_eq!(processor.preprocess(Some(&photo), Some("\u{200b}")).unwrap().text, None, "the text is missing");
    // The token itself, where special tokens are read as special tokens.
    let special = processor.with_special_tokens(true).preprocess(None, Some("[UNK]")).unwrap().text.unwrap();
    assert_eq!((special.tokens, special.understood()), (1, false));
}

#[test]
fn a_text_without_a_word_and_no_image_is_refused_as_an_error_of_the_text() {
    let processor = processor(Limits::default());
    for text in
        ["", " \n", "\u{a0}", "\u{200b}", "\u{feff}", "\0", "\u{7}\u{1b}", "\u{fffd}", "\u{e000}", "\u{301}\u{301}", "\u{3000}\u{2028}"]
    {
        let error = processor.sample(None, Some(text)).unwrap_err();
        assert!(matches!(error, InputError::NoWord), "{text:?}: {error}");
        assert!(error.field() == "text" && error.to_string().contains("the text has no word"), "{error}");
        assert_eq!(processor.sample(Some(&fixture("chelsea.png")), Some(text)).unwrap().text, None, "{text:?}");
    }
}

#[test]
fn a_sample_has_the_modalities_that_were_sent() {
    let processor = processor(Limits::default());
    let photo = fixture("chelsea.png");
    assert!(matches!(processor.sample(None, None), Err(InputError::Empty)));
    let sample = processor.sample(Some(&photo), Some("")).unwrap();
    assert_eq!(sample.text, None);
    assert_eq!((sample.image.unwrap().height, processor.shortest_edge()), (64, 64));
    assert_eq!(processor.sample(Some(&photo), None).unwrap().text, None);
    assert_eq!(processor.sample(None, Some("cat")).unwrap().image, None);
}

#[test]
fn the_embedded_checkpoint_loads() {
    let processor = InputProcessor::load(&ModelDir::Embedded, 8, 40, Limits::default()).unwrap();
    assert_eq!(processor.dummy_text(), [101, 102]);
}

#[test]
fn an_invalid_checkpoint_is_refused_with_the_name_of_the_file() {
    let write = |name: &str, content: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
        match InputProcessor::load(&ModelDir::Path(dir.path().to_owned()), 8, 40, Limits::default()) {
            Err(InputError::Checkpoint { file, .. }) => file,
            other => panic!("{name}: {:?}", other.err()),
        }
    };
    assert_eq!(write("preprocessor_config.json", r#"{"size": {"height": 3, "width": 3}}"#), "preprocessor_config.json");
    assert_eq!(write("tokenizer_config.json", "[1"), "tokenizer_config.json");
    assert_eq!(write("tokenizer.json", "{}"), "tokenizer.json");
    assert_eq!(write("vocab.txt", "[CLS]\n[SEP]\ncat\n"), "vocab.txt");
    assert_eq!(write("unrelated", ""), "tokenizer.json");
}

/// A PNG without pixels, whose header claims `side` × `side` RGBA pixels.
fn png_bomb(side: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(side.to_be_bytes());
    header.extend(side.to_be_bytes());
    header.extend([8, 6, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(&header);
    png.extend(crc32(&header).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82");
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn a_png_bomb_is_refused_by_its_header() {
    let error = image(&png_bomb(50_000)).unwrap_err();
    assert!(matches!(error, InputError::ImageSize { width: 50_000, height: 50_000, .. }), "{error}");
    assert_eq!(error.field(), "image");
    // First within the limit on sides, but above the limit on pixels; then within both, but above the limit
    // on bytes.
    assert!(matches!(image(&png_bomb(8_000)), Err(InputError::ImageSize { .. })));
    let narrow = Limits { max_decoded_bytes: 100_000, ..Limits::default() };
    assert!(matches!(processor(narrow).sample(Some(&png_bomb(200)), None), Err(InputError::ImageSize { .. })));
}

#[test]
fn a_gif_bomb_is_refused_by_the_header_of_its_frame() {
    // A screen of 1 x 1, which is enlarged to its frame of 65,535 x 65,535.
    let gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0\x3b";
    let error = image(gif).unwrap_err();
    assert!(matches!(error, InputError::ImageSize { width: 65_535, height: 65_535, .. }), "{error}");
}

#[test]
fn a_valid_file_of_an_unsupported_kind_is_not_called_damaged() {
    // A BMP of OS/2 with pixels in Huffman codes.
    let mut bmp = b"BM\0\0\0\0\0\0\0\0\x4e\0\0\0\x40\0\0\0\x02\0\0\0\x02\0\0\0\x01\0\x01\0\x03\0\0\0".to_vec();
    bmp.resize(90, 0);
    let error = image(&bmp).unwrap_err();
    assert!(matches!(error, InputError::Unsupported { format: "BMP", .. }), "{error}");
    assert!(!error.to_string().contains("undamaged") && error.to_string().contains("save it as"), "{error}");
}

#[test]
fn only_the_first_of_ten_thousand_frames_of_a_gif_is_decoded() {
    let frame = b"\x2c\0\0\0\0\x02\0\x02\0\0\x02\x03\x44\x02\x05\0";
    let mut gif = b"GIF89a\x02\0\x02\0\x80\0\0\xff\0\0\xff\xff\xff".to_vec();
    gif.extend(frame);
    let single = image(&[&gif[..], b"\x3b"].concat()).unwrap();
    gif.extend(frame.repeat(9_999));
    // Damaged from the second frame on: nothing after the first frame is read.
    gif[35..].fill(0xee);
    assert_eq!(image(&gif).unwrap(), single);
}

#[test]
fn files_cut_short_are_refused() {
    for name in
        ["china.jpg", "hopper-progressive.jpg", "coffee-cmyk.jpg", "chelsea.png", "flower.webp", "emoji-transparent.gif", "china.bmp"]
    {
        let whole = fixture(name);
        assert!(image(&whole).is_ok(), "{name}");
        for keep in [3, 20, whole.len() / 4, whole.len() / 2] {
            let error = image(&whole[..keep]).err().unwrap_or_else(|| panic!("{name} cut to {keep} bytes is accepted"));
            assert!(matches!(error, InputError::Undecodable { .. } | InputError::ImageType { .. }), "{name} cut to {keep}: {error}");
            assert_eq!(error.field(), "image");
        }
    }
    let jpeg = fixture("china.jpg");
    assert!(image(&jpeg[..jpeg.len() - 2]).is_err(), "a JPEG without its end marker");
}

#[test]
fn a_jpeg_without_its_end_marker_is_decoded_only_if_its_scan_is_complete() {
    let whole = fixture("jpeg-no-end-zeros.jpg");
    let end = whole.len() - 16;
    let after = |scan: &[u8], what: &[u8]| image(&[scan, what].concat());
    for zeros in [1, 2, 7, 8, 64, 4096] {
        assert_eq!(after(&whole[..end], &vec![0; zeros]).unwrap(), image(&whole).unwrap(), "{zeros} zeros");
    }
    assert!(image(&whole[..end]).is_err(), "nothing follows the scan");
    for cut in [end - 2, end - 5, end - 100, end / 2] {
        for what in [&b""[..], &[0; 16], &[0; 4096]] {
            let error = after(&whole[..cut], what).unwrap_err();
            assert!(error.to_string().contains("cut short"), "{} zeros after {cut} of {end} bytes: {error}", what.len());
        }
    }
    // In a progressive picture, the whole last scan may be missing, and the file does not show it.
    let progressive = fixture("hopper-progressive.jpg");
    assert!(after(&progressive[..progressive.len() - 2], &[0; 16]).is_err());
}

#[test]
fn an_unsupported_kind_of_jpeg_is_named_with_advice() {
    let photo = fixture("china.jpg");
    let frame = photo.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    let (marker, precision, height) = (frame + 1, frame + 4, frame + 5);
    for (changes, named) in [
        (&[(marker, 0xc9)][..], "arithmetic coding"),
        (&[(marker, 0xca)], "arithmetic coding"),
        (&[(marker, 0xc3)], "lossless coding"),
        (&[(marker, 0xc5)], "hierarchical coding"),
        (&[(marker, 0xde)], "hierarchical coding"),
        (&[(marker, 0xf7)], "JPEG-LS coding"),
        (&[(precision, 12)], "12-bit samples"),
        (&[(marker, 0xc1), (precision, 12)], "12-bit samples"),
        (&[(height, 0), (height + 1, 0)], "DNL"),
    ] {
        let mut jpeg = photo.clone();
        changes.iter().for_each(|&(at, value)| jpeg[at] = value);
        let error = image(&jpeg).unwrap_err();
        assert!(matches!(error, InputError::Unsupported { .. }), "{named}: {error}");
        let message = error.to_string();
        assert!(message.contains(named) && message.contains("save it as a baseline JPEG") && !message.contains("undamaged"), "{message}");
        let memory = processor(Limits::default()).memory(Some(&jpeg), None).unwrap_err();
        assert_eq!(memory.to_string(), message);
    }
}

#[test]
fn an_unknown_type_is_refused_with_the_supported_types() {
    for bytes in [&b""[..], b"hello", b"%PDF-1.7 ...............", b"II*\0\x08\0\0\0 a TIFF", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
    {
        let error = image(bytes).unwrap_err();
        assert!(matches!(error, InputError::ImageType { .. }), "{error}");
        assert!(error.to_string().contains("JPEG, PNG, WebP, GIF (first frame) or BMP"), "{error}");
    }
}

#[test]
fn an_image_or_text_of_too_many_bytes_is_refused_unread() {
    let big = vec![0u8; Limits::default().max_image_bytes + 1];
    assert!(matches!(image(&big), Err(InputError::ImageBytes { .. })));
    let text = "a text ".repeat(10_000_000 / 7);
    let error = processor(Limits::default()).sample(None, Some(&text)).unwrap_err();
    assert!(matches!(error, InputError::TextBytes { .. }), "{error}");
    assert_eq!(error.field(), "text");
}

#[test]
fn the_longest_text_allowed_is_truncated_to_the_positions() {
    let limit = Limits::default().max_text_bytes;
    let ids = processor(Limits::default()).sample(None, Some(&"cat ".repeat(limit / 4))).unwrap().text.unwrap();
    assert_eq!((ids.len(), ids[0], ids[39]), (40, 101, 102));
}

#[test]
fn an_image_of_one_row_or_one_column_is_a_sample() {
    // 1 x 5000 and 5000 x 1, grey.
    for (width, height, expected) in [(1, 5000, (104, 8)), (5000, 1, (8, 104))] {
        let mut png = std::io::Cursor::new(Vec::new());
        image::GrayImage::from_fn(width, height, |x, y| image::Luma([((x + y) % 251) as u8]))
            .write_to(&mut png, image::ImageFormat::Png)
            .unwrap();
        let pixels = image(png.get_ref()).unwrap().image.unwrap();
        assert_eq!((pixels.height, pixels.width), expected);
    }
}

#[test]
fn damaged_files_never_panic() {
    // Up to 200 bytes of a small file of each type are overwritten, one at a time.
    for name in ["orientation-6.jpg", "hopper-bilevel.png", "animated.webp", "emoji-transparent.gif", "china-palette.bmp"] {
        let whole = fixture(name);
        let processor = processor(Limits::default());
        for at in (0..whole.len()).step_by(1 + whole.len() / 200) {
            for value in [0, 0xff, whole[at] ^ 0x55] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                if let Err(e) = processor.sample(Some(&damaged), None) {
                    assert_eq!(e.field(), "image");
                }
            }
        }
    }
}

#[test]
fn a_processor_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&processor(Limits::default()));
}
