//! msgpack as far as a map of numbers and texts needs it; other values are skipped. Nothing is allocated, and the bytes
//! are not trusted.

/// A value of a map.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    Int(u64),
    Str(&'a str),
    Other,
}

/// Every key with its value; None where `body` is not exactly one map whose keys are texts, or where `field` returns
/// it.
pub fn fields<'a>(body: &'a [u8], mut field: impl FnMut(&'a str, Value<'a>) -> Option<()>) -> Option<()> {
    let mut reader = Reader(body);
    let Token::Map(count) = reader.token()? else { return None };
    for _ in 0..count {
        let Token::Str(key) = reader.token()? else { return None };
        let value = reader.value()?;
        field(key, value)?;
    }
    reader.0.is_empty().then_some(())
}

/// One marker and what belongs to it alone.
enum Token<'a> {
    Int(u64),
    Str(&'a str),
    Array(usize),
    Map(usize),
    Other,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.take(bytes)?.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn count(&mut self, bytes: usize) -> Option<usize> {
        usize::try_from(self.number(bytes)?).ok()
    }

    fn text(&mut self, count: usize) -> Option<Token<'a>> {
        std::str::from_utf8(self.take(count)?).ok().map(Token::Str)
    }

    fn other(&mut self, count: usize) -> Option<Token<'a>> {
        self.take(count).map(|_| Token::Other)
    }

    fn token(&mut self) -> Option<Token<'a>> {
        let marker = self.number(1)? as u8;
        let low = usize::from(marker & 0x0f);
        match marker {
            0x00..=0x7f => Some(Token::Int(marker.into())),
            0x80..=0x8f => Some(Token::Map(low)),
            0x90..=0x9f => Some(Token::Array(low)),
            0xa0..=0xbf => self.text(usize::from(marker & 0x1f)),
            0xc1 => None, // never used
            0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => Some(Token::Other),
            0xc4..=0xc6 => {
                let count = self.count(1 << (marker - 0xc4))?;
                self.other(count)
            }
            0xc7..=0xc9 => {
                let count = self.count(1 << (marker - 0xc7))?;
                self.other(count.checked_add(1)?)
            }
            0xca | 0xcb => self.other(4 << (marker - 0xca)),
            0xcc..=0xcf => self.number(1 << (marker - 0xcc)).map(Token::Int),
            0xd0..=0xd3 => self.other(1 << (marker - 0xd0)),
            0xd4..=0xd8 => self.other((1 << (marker - 0xd4)) + 1),
            0xd9..=0xdb => {
                let count = self.count(1 << (marker - 0xd9))?;
                self.text(count)
            }
            0xdc | 0xdd => self.count(2 << (marker - 0xdc)).map(Token::Array),
            0xde | 0xdf => self.count(2 << (marker - 0xde)).map(Token::Map),
        }
    }

    /// A whole value. What is nested is skipped by counting, not by recursion.
    fn value(&mut self) -> Option<Value<'a>> {
        let mut open = match self.token()? {
            Token::Int(value) => return Some(Value::Int(value)),
            Token::Str(text) => return Some(Value::Str(text)),
            token => token.items()?,
        };
        while open > 0 {
            if open > self.0.len() {
                return None; // each takes a byte at least
            }
            open = open - 1 + self.token()?.items()?;
        }
        Some(Value::Other)
    }
}

impl Token<'_> {
    /// How many values follow that belong to it.
    fn items(&self) -> Option<usize> {
        match self {
            Token::Array(count) => Some(*count),
            Token::Map(count) => count.checked_mul(2),
            Token::Int(_) | Token::Str(_) | Token::Other => Some(0),
        }
    }
}

pub fn put_str(body: &mut Vec<u8>, text: &str) {
    match text.len() {
        short @ 0..=31 => body.push(0xa0 | short as u8),
        middle @ 32..=255 => body.extend_from_slice(&[0xd9, middle as u8]),
        long => {
            body.push(0xdb);
            body.extend_from_slice(&(long as u32).to_be_bytes());
        }
    }
    body.extend_from_slice(text.as_bytes());
}

pub fn put_int(body: &mut Vec<u8>, value: u64) {
    let bytes = value.to_be_bytes();
    let size = match value {
        0..=0x7f => return body.push(value as u8),
        0x80..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8usize,
    };
    body.push(0xcc + size.trailing_zeros() as u8);
    body.extend_from_slice(&bytes[8 - size..]);
}
