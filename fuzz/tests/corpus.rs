//! Replays the corpus that fuzzing left: inputs that reach every part of the parsers, and those that once failed.

use std::{fs, path::Path};

fn replay(name: &str) {
    let (_, target) = fanout_fuzz::TARGETS.iter().find(|(target, _)| *target == name).expect("a target");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut count = 0;
    for entry in entries {
        let path = entry.expect("an entry").path();
        // Shown only where the target panics.
        println!("{}", path.display());
        target(&fs::read(&path).expect("readable"));
        count += 1;
    }
    assert!(count > 0, "{} is empty", directory.display());
}

macro_rules! replays {
    ($($test:ident: $target:literal,)*) => {
        $(#[test]
        fn $test() {
            replay($target);
        })*

        #[test]
        fn every_target_is_replayed() {
            assert_eq!(fanout_fuzz::TARGETS.map(|(name, _)| name), [$($target),*]);
        }
    };
}

replays! {
    names_of_channels_hold_what_they_promise: "channel_name",
    commands_are_within_their_limits_or_mistakes: "commands",
    connections_end_and_what_comes_over_them_are_frames: "connection",
    messages_are_unpacked_as_they_were_packed: "deflate",
    envelopes_are_decoded_from_their_own_bytes: "envelope",
    frames_are_the_same_however_they_were_cut: "frames",
    no_payload_breaks_what_carries_it: "publication",
    every_request_has_an_answer_that_is_no_failure: "request",
    what_redis_says_is_the_same_however_it_was_cut: "resp",
    good_settings_are_the_same_written_down_again: "settings",
}
