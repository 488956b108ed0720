use proptest::{collection::vec, prelude::*};

use super::*;

/// What a subscription should see: the frames that were appended since it joined.
#[derive(Debug)]
struct Reader {
    cursor: Cursor,
    stop: Option<Cursor>,
}

#[derive(Clone, Debug)]
enum Op {
    Append(usize),
    Join,
    Leave(usize),
    Send(usize, usize),
    Skip(usize, u64, u64),
    Stop(usize, u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => prop_oneof![1_usize..50, 10_000_usize..90_000].prop_map(Op::Append),
        1 => Just(Op::Join),
        1 => (0_usize..8).prop_map(Op::Leave),
        6 => (0_usize..8, prop_oneof![1_usize..60, 1_000_usize..200_000]).prop_map(|(who, n)| Op::Send(who, n)),
        1 => (0_usize..8, 1_u64..100_000, 0_u64..6).prop_map(|(who, b, m)| Op::Skip(who, b, m)),
        1 => (0_usize..8, 1_u64..200_000, 1_u64..6).prop_map(|(who, b, m)| Op::Stop(who, b, m)),
    ]
}

/// The log and, beside it, a plain list of all frames.
#[derive(Default)]
struct Model {
    log: Log,
    spares: Spares,
    readers: Vec<Reader>,
    all: Vec<u8>,
    edges: Vec<u64>,
    held: usize,
    counter: u8,
}

impl Model {
    fn append(&mut self, size: usize) {
        self.counter = self.counter.wrapping_add(1);
        let nobody_reads = self.readers.iter().all(|reader| reader.stop.is_some());
        let frame = vec![self.counter; if nobody_reads { 1 } else { size }];
        self.held +=
            self.log.append(&mut self.spares, NO_KEY, Moment::default(), |out| out.extend_from_slice(&frame));
        self.all.extend_from_slice(&frame);
        self.edges.push(self.all.len() as u64);
    }

    fn send(&mut self, who: usize, bytes: usize) {
        let Some(reader) = self.readers.get_mut(who) else { return };
        let end = reader.stop.unwrap_or(self.log.head());
        let bytes = bytes.min((end - reader.cursor) as usize);
        let sent: Vec<u8> = self.log.read(reader.cursor, bytes).flatten().copied().collect();
        let mut to = reader.cursor + sent.len() as u64;
        assert_eq!(sent, self.all[reader.cursor as usize..to as usize], "never twice, out of order or torn");
        assert_eq!(sent.is_empty(), reader.cursor == end);
        if let Some(stop) = reader.stop.take_if(|stop| *stop == to) {
            let messages = self.edges.iter().filter(|edge| **edge > stop).count() as u64;
            assert_eq!(self.log.lag(stop).messages, messages, "what is skipped is counted");
            self.log.unstop(stop);
            to = self.log.head();
        }
        self.held -= self.log.advance(reader.cursor, to, &mut self.spares);
        reader.cursor = to;
    }

    fn skip(&mut self, who: usize, max: Lag) {
        let Some(reader) = self.readers.get_mut(who).filter(|reader| reader.stop.is_none()) else { return };
        let to = self.log.within(reader.cursor, max);
        let lag = self.log.lag(to);
        assert!(lag.bytes <= max.bytes && lag.messages <= max.messages);
        assert!(to == self.log.edge(reader.cursor) || self.edges.contains(&to), "a frame's edge");
        let edges = &self.edges;
        let minimal = edges.iter().rev().find(|edge| **edge < to && **edge >= reader.cursor);
        if let Some(minimal) = minimal {
            let lag = self.log.lag(*minimal);
            assert!(lag.bytes > max.bytes || lag.messages > max.messages, "skips no more than it must");
        }
        self.held -= self.log.advance(reader.cursor, to, &mut self.spares);
        reader.cursor = to;
    }

    /// As `Core::drop_newest` does.
    fn stop(&mut self, who: usize, max: Lag) {
        let Some(reader) = self.readers.get_mut(who) else { return };
        let Reader { cursor, stop: before } = *reader;
        let lag = match before {
            Some(stop) => Lag { bytes: stop - cursor, messages: 0 },
            None => self.log.lag(cursor),
        };
        if lag.is_within(max) {
            return;
        }
        let stop = self.log.reach(cursor, max);
        let fits = |edge: u64| {
            let messages =
                self.edges.iter().filter(|other| **other > cursor && **other <= edge).count() as u64;
            edge - cursor <= max.bytes && messages <= max.messages
        };
        let best = self.edges.iter().rev().find(|edge| **edge >= cursor && fits(**edge)).copied();
        let half = self.log.edge(cursor);
        assert_eq!(stop, best.unwrap_or(cursor).max(half), "keeps as much as the bounds allow");
        if let Some(before) = before {
            assert!(stop <= before, "what is behind the old stop is gone");
            self.log.unstop(before);
        }
        if stop == cursor {
            let head = self.log.head();
            self.held -= self.log.advance(cursor, head, &mut self.spares);
            *reader = Reader { cursor: head, stop: None };
        } else {
            self.held -= self.log.stop(stop, &mut self.spares);
            reader.stop = Some(stop);
        }
    }

    fn check(&self) {
        assert_eq!(self.log.head(), self.all.len() as u64);
        assert_eq!(self.held, self.log.segments.iter().map(Segment::footprint).sum::<usize>());
        for segment in &self.log.segments {
            let needs = |reader: &Reader| {
                reader.cursor < segment.end() && reader.stop.is_none_or(|stop| stop > segment.start)
            };
            assert!(self.readers.iter().any(needs), "no segment is kept without need");
        }
        for reader in &self.readers {
            let lag = self.log.lag(reader.cursor);
            let messages = self.edges.iter().filter(|edge| **edge > reader.cursor).count() as u64;
            assert_eq!(lag, Lag { bytes: self.log.head() - reader.cursor, messages });
            let end = reader.stop.unwrap_or(self.log.head());
            let there: usize =
                self.log.read(reader.cursor, (end - reader.cursor) as usize).map(<[u8]>::len).sum();
            assert_eq!(there as u64, end - reader.cursor, "all that is needed is there");
            let edge = self.edges.iter().find(|edge| **edge >= reader.cursor);
            let at_edge = reader.cursor == 0 || self.edges.contains(&reader.cursor);
            assert_eq!(self.log.is_edge(reader.cursor), at_edge);
            assert_eq!(self.log.edge(reader.cursor), if at_edge { reader.cursor } else { *edge.unwrap() });
        }
    }
}

proptest! {
    #[test]
    fn every_reader_sees_each_frame_once_in_order_whatever_the_others_do(ops in vec(op(), 1..120)) {
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Append(size) if !model.readers.is_empty() => model.append(size),
                Op::Append(_) => {}
                Op::Join => {
                    let cursor = model.log.join();
                    model.readers.push(Reader { cursor, stop: None });
                }
                Op::Leave(who) if who < model.readers.len() => {
                    let reader = model.readers.swap_remove(who);
                    if let Some(stop) = reader.stop {
                        model.log.unstop(stop);
                    }
                    model.held -= model.log.leave(reader.cursor, &mut model.spares);
                }
                Op::Leave(_) => {}
                Op::Send(who, bytes) => model.send(who, bytes),
                Op::Stop(who, bytes, messages) => model.stop(who, Lag { bytes, messages }),
                Op::Skip(who, bytes, messages) => model.skip(who, Lag { bytes, messages }),
            }
            model.check();
        }
    }
}

fn append(log: &mut Log, spares: &mut Spares, bytes: usize) -> usize {
    log.append(spares, NO_KEY, Moment::default(), |out| out.extend_from_slice(&vec![1; bytes]))
}

#[test]
fn a_log_whose_readers_keep_up_holds_nothing_and_allocates_nothing_new() {
    let (mut log, mut spares) = (Log::default(), Spares::within(usize::MAX));
    let mut cursor = log.join();
    for _ in 0..1_000 {
        let grown = append(&mut log, &mut spares, 100);
        let head = log.head();
        assert_eq!(log.advance(cursor, head, &mut spares), grown);
        cursor = head;
        assert!(log.segments.is_empty());
    }
    assert_eq!(spares.segments.len(), 1, "one buffer served all");
}

#[test]
fn one_slow_reader_keeps_what_it_needs_and_no_more() {
    let (mut log, mut spares) = (Log::default(), Spares::default());
    let (slow, mut fast) = (log.join(), log.join());
    let mut held = 0;
    for _ in 0..10 {
        held += append(&mut log, &mut spares, SEGMENT);
        held -= log.advance(fast, log.head(), &mut spares);
        fast = log.head();
    }
    assert!((10 * SEGMENT..11 * SEGMENT).contains(&held), "{held}");
    held -= log.leave(slow, &mut spares);
    assert_eq!((held, log.segments.len()), (0, 0));
}

#[test]
fn what_messages_of_a_few_bytes_need_beside_their_bytes_is_counted() {
    let (mut log, mut spares) = (Log::default(), Spares::default());
    log.join();
    let mut held = 0;
    for moment in 0..100_000 {
        held += log.append(&mut spares, 1, Moment(moment), |out| out.extend_from_slice(b"abc"));
    }
    // Its end, when it was published and what it is about: 24 bytes each beside three.
    assert!(held >= 27 * 100_000 && held == log.held(), "{held}");
    let freed = log.shrink();
    assert!(freed < held && held - freed < 28 * 100_000, "{freed} of {held}");
    assert_eq!(log.held(), held - freed);
}

#[test]
fn spares_have_a_bound_of_their_own() {
    let mut spares = Spares::within(16 * 100_000);
    for _ in 0..10 {
        spares.put(Spare { bytes: Vec::with_capacity(30_000), ..Spare::default() });
    }
    assert!(spares.held() <= 100_000 && spares.segments.len() == 3, "{}", spares.held());
    drop(spares.take());
    assert_eq!(spares.held(), spares.segments.iter().map(Spare::footprint).sum::<usize>());
    spares.clear();
    assert_eq!((spares.held(), spares.segments.len()), (0, 0));
}
