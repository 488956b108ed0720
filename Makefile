# One vocabulary for people and for CI. The work is in scripts/, a target is one line.
.DEFAULT_GOAL := help
.PHONY: help demo test check unit autobahn fuzz fuzz-smoke e2e lab-up lab-down images crds fmt bench bench-quick audit dist screenshots

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## start three nodes and a playground page; CHECK=1 checks delivery by itself and ends
	@scripts/demo.sh

test: ## check, unit tests, demo and end-to-end tests; installs what it needs (Debian, root)
	@scripts/test.sh

check: ## format, clippy, rustdoc, licences, shellcheck, generated files, chart
	@scripts/check.sh

unit: ## the tests that need no cluster
	@scripts/unit.sh

autobahn: ## RFC 6455 by the Autobahn|Testsuite (needs Python 2.7 and the internet); report in target/autobahn/
	@scripts/autobahn.sh

fuzz: ## drive each fuzz target for SECONDS_EACH=60 by libFuzzer, on the pinned toolchain
	@scripts/fuzz.sh

fuzz-smoke: ## replay the fuzzers' corpus; `make test` does so too
	@scripts/unit.sh -p fanout-fuzz

e2e: ## end-to-end tests on the lab, or on the cluster of KUBECONFIG
	@scripts/e2e.sh

lab-up: ## start the lab: a real Kubernetes cluster on this machine (Linux, root)
	@lab/lab.sh build && lab/lab.sh up

lab-down: ## stop the lab, nothing is left behind
	@lab/lab.sh down

images: ## build the container images, offline, and load them into the lab if it runs
	@images/build.sh

crds: ## write the generated files: CRD, docs/protocol.md, JSON Schemas
	@scripts/generate.sh

fmt: ## format the Rust code
	@cargo fmt --all

bench: ## measure the sidecar beside a bare write loop and its peers (45 min)
	@scripts/bench.sh

bench-quick: ## the same rows, shorter (10 min)
	@scripts/bench.sh --quick

screenshots: ## take the README's pictures of the playground, by a real browser
	@FANOUT_SCREENSHOTS="$(CURDIR)/docs/images" scripts/unit.sh -p kubectl-fanout --test playground

audit: ## known vulnerabilities in the dependencies (needs the internet)
	@scripts/tools.sh && PATH="$${FANOUT_TOOLS:-$${XDG_CACHE_HOME:-$$HOME/.cache}/fanout-tools}/bin:$$PATH" cargo deny check advisories

dist: ## build what a release holds, for this machine's architecture; publishes nothing
	@scripts/dist.sh
