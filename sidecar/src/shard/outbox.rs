//! What goes to one connection alone: the rest of a half-sent publication that its log no longer keeps for it, then
//! replies that could not be sent at once. Pure.

/// More replies than this mean that the client asks but does not read: close.
const MOST: usize = 256 * 1_024;

/// Bytes to send before anything else; allocated while there are any.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// Of the unsent bytes, those of a publication.
    rest: usize,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Room for the bytes of a reply, and whether the bound still holds afterwards.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), Overflow> {
        self.bytes.extend_from_slice(bytes);
        if self.unsent().len() - self.rest > MOST { Err(Overflow) } else { Ok(()) }
    }

    /// The rest of a half-sent publication, before all else. The outbox itself is not half sent then.
    pub(crate) fn put_first(&mut self, rest: &[u8]) {
        debug_assert_eq!((self.sent, self.rest), (0, 0), "only one frame can be half sent");
        self.rest = rest.len();
        self.bytes.splice(0..0, rest.iter().copied());
    }

    /// Bytes of a publication that are still to be sent.
    pub(crate) fn rest(&self) -> usize {
        self.rest
    }

    /// Memory of the replies: all that it has but for the publication.
    pub(crate) fn held(&self) -> usize {
        self.bytes.capacity() - self.rest
    }

    pub(crate) fn advance(&mut self, moved: usize) {
        self.sent += moved;
        self.rest = self.rest.saturating_sub(moved);
        if self.sent == self.bytes.len() {
            *self = Self::default();
        }
    }
}

/// The client asks more than it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_outbox_holds_no_memory() {
        let mut outbox = Outbox::default();
        outbox.put(b"reply").unwrap();
        outbox.put_first(b"rest ");
        outbox.advance(3);
        assert_eq!(outbox.unsent(), b"t reply");
        outbox.advance(7);
        assert_eq!((outbox.is_empty(), outbox.bytes.capacity()), (true, 0));
    }

    #[test]
    fn a_client_that_asks_but_does_not_read_overflows() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.put(&vec![0; MOST]), Ok(()));
        assert_eq!(outbox.put(b"x"), Err(Overflow));
        let mut outbox = Outbox::default();
        outbox.put_first(&vec![0; 2 * MOST]);
        assert_eq!(outbox.put(b"reply"), Ok(()), "a publication is no reply");
        outbox.advance(2 * MOST + 1);
        assert_eq!((outbox.rest(), outbox.unsent()), (0, &b"eply"[..]));
    }
}
