//! The wire format: numbered fields, each a number of variable or fixed length, or a run of bytes.

use crate::Error;

/// What is left of a message.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    /// Where `bytes` begins in the body.
    at: usize,
}

/// The content of a field.
#[derive(Clone, Debug)]
pub(crate) struct Word<'a> {
    content: Content<'a>,
    at: usize,
}

#[derive(Clone, Debug)]
enum Content<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32,
    Bytes(&'a [u8]),
}

fn malformed(at: usize, what: &'static str) -> Error {
    Error::Malformed { at, what }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Reader<'a> {
        Reader { bytes, at }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn malformed(&self, what: &'static str) -> Error {
        malformed(self.at, what)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let taken = self.bytes.split_at_checked(count);
        let (taken, rest) = taken.ok_or(Error::Truncated { at: self.at })?;
        self.bytes = rest;
        self.at += count;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                break;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed(start, "a number has more than 64 bits"))
    }

    /// The next field: its number and its content. `None`: that was all.
    pub(crate) fn field(&mut self) -> Result<Option<(u32, Word<'a>)>, Error> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let at = self.at;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0);
        let number = number.ok_or_else(|| malformed(at, "a field has a number that none can have"))?;
        let content = match tag & 7 {
            0 => Content::Varint(self.varint()?),
            1 => Content::Fixed64(self.take(8)?.try_into().expect("eight bytes were taken")),
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).map_err(|_| Error::Truncated { at: self.at })?;
                Content::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Content::Fixed32
            }
            _ => return Err(malformed(at, "a field has a wire type that is not used")),
        };
        let at = match content {
            Content::Bytes(bytes) => self.at - bytes.len(),
            _ => at,
        };
        Ok(Some((number, Word { content, at })))
    }
}

impl<'a> Word<'a> {
    pub(crate) fn malformed(&self, what: &'static str) -> Error {
        malformed(self.at, what)
    }

    /// A run of bytes: a message, or bytes.
    pub(crate) fn bytes(&self) -> Result<Reader<'a>, Error> {
        match self.content {
            Content::Bytes(bytes) => Ok(Reader::new(bytes, self.at)),
            _ => Err(self.malformed("a number is where bytes belong")),
        }
    }

    pub(crate) fn text(&self) -> Result<&'a str, Error> {
        let bytes = self.bytes()?.rest();
        std::str::from_utf8(bytes).map_err(|error| malformed(self.at + error.valid_up_to(), "a text is not UTF-8"))
    }

    /// A whole number; those below zero are sent as the large ones of the same bits.
    pub(crate) fn int(&self) -> Result<i64, Error> {
        match self.content {
            Content::Varint(value) => Ok(value.cast_signed()),
            _ => Err(self.malformed("something else is where a whole number belongs")),
        }
    }

    pub(crate) fn double(&self) -> Result<f64, Error> {
        match self.content {
            Content::Fixed64(bytes) => Ok(f64::from_le_bytes(bytes)),
            _ => Err(self.malformed("something else is where a number with a fraction belongs")),
        }
    }
}
