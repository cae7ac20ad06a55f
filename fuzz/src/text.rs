//! Tokenising of a text.
use delo_model::input::InputError;

use super::{LIMITS, model, processor};

/// Any UTF-8 as a text: at most the model's positions, of tokens that the model knows, from `[CLS]` to `[SEP]`; a long or an empty one is refused.
pub fn text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let dummy = processor().dummy_text();
    match processor().sample(None, Some(&text)) {
        Ok(sample) => {
            let ids = sample.text.expect("a text was given");
            assert!((3..=model().max_position_embeddings).contains(&ids.len()), "{} tokens", ids.len());
            assert_eq!((ids.first(), ids.last()), (dummy.first(), dummy.last()));
            assert!(ids.iter().all(|&id| (id as usize) < model().vocab_size));
            assert!(ids[1..ids.len() - 1].iter().all(|id| !dummy.contains(id)), "a text holds no [CLS] and no [SEP]");
            assert!(text.len() <= LIMITS.max_text_bytes);
        }
        Err(InputError::NoWord) => assert!(text.len() <= LIMITS.max_text_bytes),
        Err(InputError::TextBytes { bytes, .. }) => assert!(bytes == text.len() && bytes > LIMITS.max_text_bytes),
        Err(error) => panic!("a text is refused for its length alone, not with {error}"),
    }
}
