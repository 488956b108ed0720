//! How much memory the process may have.

use std::{fs, path::Path};

/// Where the system keeps the limit of the container, or of the service: of cgroup 2, and of 1.
const FILES: [&str; 2] = ["memory.max", "memory/memory.limit_in_bytes"];
/// Above this nobody meant a limit: cgroup 1 says "none" by a number near 2^63.
const MOST: u64 = 1 << 60;

/// The limit of its control group, in bytes; `None` where there is none.
pub(super) fn limit() -> Option<u64> {
    limit_below(Path::new("/sys/fs/cgroup"))
}

fn limit_below(root: &Path) -> Option<u64> {
    let read = |file: &&str| fs::read_to_string(root.join(file)).ok()?.trim().parse().ok();
    FILES.iter().filter_map(read).find(|limit| *limit < MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_either_kind_of_control_group_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(limit_below(root.path()), None);
        fs::create_dir(root.path().join("memory")).unwrap();
        fs::write(root.path().join(FILES[1]), "9223372036854771712\n").unwrap();
        assert_eq!(limit_below(root.path()), None, "none was set");
        fs::write(root.path().join(FILES[1]), "536870912\n").unwrap();
        assert_eq!(limit_below(root.path()), Some(536_870_912));
        fs::write(root.path().join(FILES[0]), "max\n").unwrap();
        assert_eq!(limit_below(root.path()), Some(536_870_912));
        fs::write(root.path().join(FILES[0]), "1073741824\n").unwrap();
        assert_eq!(limit_below(root.path()), Some(1_073_741_824));
    }
}
