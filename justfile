# The one way to do each thing; `just` lists them. `cargo run` and `cargo test` need nothing from here.

_default:
    @just --list

# All that must hold before a change lands
ci:
    bash .ci/run

# Format the sources
fmt:
    cargo fmt --all

# Lint everything, warnings refused
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# All tests, the load generator's too
test *args:
    cargo test --workspace {{args}}

# The documentation of the library, broken links refused
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Does the CUDA build compile? Fetches nvcc from PyPI; needs no GPU
cuda-check *args:
    bash tools/cuda/check.sh {{args}}

# Licences, bans and sources of the dependencies
deny:
    cargo deny check licenses bans sources

# Known vulnerabilities of the dependencies (needs the network)
advisories:
    cargo deny check advisories

# Prometheus rules with their unit tests, the dashboard, the runbook
promtool:
    deploy/check.sh

# Start a server on the embedded models
serve *args:
    cargo run --release -- serve {{args}}

# Measure the engine: requests per second by precision and batch
bench *args:
    cargo run --release -- bench engine {{args}}

# Load a server started for the run: just load overload
load scenario="steady" *args:
    cargo build --release --package delo --bin delo
    cargo run --release --package delo-load -- load-tests/scenarios/{{scenario}}.toml --spawn target/release/delo {{args}}

# Look for inputs that break a promise, so many seconds a target (needs cargo-fuzz): just fuzz 60
fuzz seconds="20" *targets:
    bash tools/fuzz.sh {{seconds}} {{targets}}

# What a release is made of, proven with one binary (needs root on Debian for all of it)
release-check *args:
    deploy/release/check.sh {{args}}

# The book, and its commands run (needs openssl, curl, jq; grpcurl and mdbook where they are)
book *pages:
    python3 tests/book/run.py {{pages}}

# The container image
image tag="delo:local":
    docker build -t {{tag}} .
