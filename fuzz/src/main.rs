//! The fuzzer: libFuzzer drives the target that `FANOUT_FUZZ_TARGET` names. Built by `scripts/fuzz.sh`, which gives
//! the compiler the flags that count coverage.

#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("FANOUT_FUZZ_TARGET").unwrap_or_default();
    let found = fanout_fuzz::TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("FANOUT_FUZZ_TARGET is `{name}`, which is no target")).1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
