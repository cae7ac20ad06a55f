# docker build -t delo . && docker run --rm -p 127.0.0.1:50051:50051 -p 127.0.0.1:9464:9464 delo
ARG RUST_VERSION=1.95.0
ARG DEBIAN_VERSION=12.12

FROM rust:${RUST_VERSION}-slim-bookworm AS build
WORKDIR /build
# Dependencies alone, with sources that hold nothing: this layer lasts until the manifests change.
COPY Cargo.toml Cargo.lock ./
COPY crates/benchmark/Cargo.toml crates/benchmark/
COPY crates/catalogue/Cargo.toml crates/catalogue/
COPY crates/engine/Cargo.toml crates/engine/
COPY crates/fixtures/Cargo.toml crates/fixtures/
COPY crates/kernels/Cargo.toml crates/kernels/
COPY crates/model/Cargo.toml crates/model/
COPY crates/process/Cargo.toml crates/process/
COPY crates/proto/Cargo.toml crates/proto/
COPY crates/registry/Cargo.toml crates/registry/
COPY crates/report/Cargo.toml crates/report/
COPY crates/train/Cargo.toml crates/train/
COPY load-tests/Cargo.toml load-tests/
RUN for crate in . crates/* load-tests; do mkdir -p "$crate/src" && touch "$crate/src/lib.rs"; done \
    && for main in src/main.rs load-tests/src/main.rs crates/kernels/benches/kernels.rs; do mkdir -p "$(dirname "$main")" && echo 'fn main() {}' > "$main"; done \
    && cargo build --release --locked --package delo \
    && rm -r src crates load-tests
COPY . .
# Cargo goes by modification times, and what was copied may be older than what was just built.
RUN find src crates -name "*.rs" -exec touch {} + \
    && cargo build --release --locked --package delo --bin delo \
    && install -D -m 755 target/release/delo /out/usr/local/bin/delo \
    && strip --strip-debug /out/usr/local/bin/delo \
    && install -D -m 644 -t /out/usr/share/doc/delo LICENSE THIRD_PARTY_NOTICES.md README.md

FROM debian:${DEBIAN_VERSION}-slim
RUN groupadd --system --gid 65532 delo \
    && useradd --system --uid 65532 --gid delo --home-dir /var/lib/delo --create-home --shell /usr/sbin/nologin delo
COPY --from=build /out /
USER 65532:65532
WORKDIR /var/lib/delo
# Classifier and metrics are for others; the admin service stays on the container's own loopback: docker exec CONTAINER delo admin list.
ENV DELO_SERVER__LISTEN=0.0.0.0:50051 \
    DELO_METRICS__LISTEN=0.0.0.0:9464 \
    DELO_LOGGING__FORMAT=json
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# Asks by the server's settings in the environment (DELO_CONFIG=FILE for a file of them); flags of the command are unknown to it. With TLS and tokens too.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=1s --retries=3 \
    CMD ["delo", "health"]
ENTRYPOINT ["delo"]
CMD ["serve"]
