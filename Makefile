# Targets for people and for CI. Each is one line; the work is in scripts/.
.DEFAULT_GOAL := help
.PHONY: help demo test check unit autobahn fuzz fuzz-smoke e2e lab-up lab-down images crds fmt bench bench-quick audit dist screenshots

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## start three nodes and a playground page; CHECK=1 verifies delivery unattended and exits
	@scripts/demo.sh

test: ## run check, unit tests, demo and end-to-end tests; installs requirements (Debian, root)
	@scripts/test.sh

check: ## check format, clippy, rustdoc, licences, shellcheck, generated files and chart
	@scripts/check.sh

unit: ## run the tests that need no cluster
	@scripts/unit.sh

autobahn: ## test RFC 6455 with the Autobahn|Testsuite (needs Python 2.7 and the internet); report in target/autobahn/
	@scripts/autobahn.sh

fuzz: ## run each fuzz target for SECONDS_EACH=60 with libFuzzer, on the pinned toolchain
	@scripts/fuzz.sh

fuzz-smoke: ## replay the fuzzing corpus, as `make test` does
	@scripts/unit.sh -p fanout-fuzz

e2e: ## run the end-to-end tests on the lab, or on the cluster of KUBECONFIG
	@scripts/e2e.sh

lab-up: ## start the lab: a real Kubernetes cluster on this machine (Linux, root)
	@lab/lab.sh build && lab/lab.sh up

lab-down: ## stop the lab and leave nothing behind
	@lab/lab.sh down

images: ## build the container images, offline, and load them into the lab if it runs
	@images/build.sh

crds: ## write the generated files: CRD, docs/protocol.md, JSON Schemas
	@scripts/generate.sh

fmt: ## format the Rust code
	@cargo fmt --all

bench: ## compare the sidecar with a bare write loop and its peers (45 min)
	@scripts/bench.sh

bench-quick: ## run a shorter bench with the same rows (10 min)
	@scripts/bench.sh --quick

screenshots: ## take the README's pictures of the playground with a real browser
	@FANOUT_SCREENSHOTS="$(CURDIR)/docs/images" scripts/unit.sh -p kubectl-fanout --test playground

audit: ## check the dependencies for known vulnerabilities (needs the internet)
	@scripts/tools.sh && PATH="$${FANOUT_TOOLS:-$${XDG_CACHE_HOME:-$$HOME/.cache}/fanout-tools}/bin:$$PATH" cargo deny check advisories

dist: ## build the files of a release for this machine's architecture; publishes nothing
	@scripts/dist.sh --chart
