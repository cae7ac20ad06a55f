//! The frames of gRPC in the bytes of a body: five bytes of prefix before each message.

/// Bytes of a gRPC frame before its message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Follows the messages in the bytes of a body, however the bytes are cut into pieces.
#[derive(Debug, Default)]
pub struct Framing {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that have come.
    seen: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Framing {
    /// Whether all bytes so far are whole messages.
    pub fn at_an_end(&self) -> bool {
        self.seen == 0
    }

    /// Reads `data`, the next bytes, up to the end of the first message that ends in them: the index after
    /// that message. `None`: all of `data` was read, and no message ends in it.
    pub fn next_end(&mut self, data: &[u8]) -> Option<usize> {
        let head = data.len().min(PREFIX - self.seen);
        self.prefix[self.seen..self.seen + head].copy_from_slice(&data[..head]);
        self.seen += head;
        if self.seen < PREFIX {
            return None;
        }
        if head > 0 {
            let [_, a, b, c, d] = self.prefix;
            self.left = u32::from_be_bytes([a, b, c, d]) as usize;
        }
        let body = self.left.min(data.len() - head);
        self.left -= body;
        if self.left > 0 {
            return None;
        }
        self.seen = 0;
        Some(head + body)
    }

    /// Reads `data`, the next bytes: the index after the last message that ends in them. `None`: no message
    /// does.
    pub fn last_end(&mut self, data: &[u8]) -> Option<usize> {
        let mut last = None;
        while let Some(end) = self.next_end(&data[last.unwrap_or(0)..]) {
            last = Some(last.unwrap_or(0) + end);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_ends_of_messages_however_they_are_cut() {
        let bytes = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 1, 9]].concat();
        let mut framing = Framing::default();
        let ends: Vec<_> = (0..bytes.len()).filter(|&i| framing.last_end(&bytes[i..=i]).is_some()).collect();
        assert_eq!(ends, [7, 12, 18]);
        assert!(framing.at_an_end());
        assert_eq!(Framing::default().last_end(&bytes), Some(19));
        assert_eq!(Framing::default().last_end(&bytes[..10]), Some(8));
        assert_eq!(Framing::default().last_end(&bytes[..7]), None);
        assert_eq!(Framing::default().next_end(&bytes), Some(8));
    }
}
