//! `kubectl-fanout`, found by kubectl as `kubectl fanout`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kubectl_fanout::main()
}
