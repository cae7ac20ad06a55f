# docker build -t delo . && docker run --rm -p 127.0.0.1:50051:50051 -p 127.0.0.1:9464:9464 delo
# docker build -t delo-cuda --target cuda --build-arg CUDA_COMPUTE_CAP=90 . && docker run --rm --gpus all -p 127.0.0.1:50051:50051 delo-cuda
#
# BuildKit builds only the stages that the target needs; without --target that is the last one, for CPUs.
ARG RUST_VERSION=1.95.0
ARG CUDA_VERSION=13.0.1

FROM rust:${RUST_VERSION}-slim-bookworm AS rust

# Dependencies alone, with sources that hold nothing: what is built of them lasts until the manifests change.
FROM rust AS manifests
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY crates/benchmark/Cargo.toml crates/benchmark/
COPY crates/catalogue/Cargo.toml crates/catalogue/
COPY crates/client/Cargo.toml crates/client/
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
    && for main in src/main.rs load-tests/src/main.rs crates/kernels/benches/kernels.rs; do mkdir -p "$(dirname "$main")" && echo 'fn main() {}' > "$main"; done

FROM rust AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates musl-tools \
    && rm -rf /var/lib/apt/lists/* \
    && rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /build
COPY --from=manifests /build .
COPY deploy/release deploy/release
RUN bash deploy/release/build.sh /dependencies && rm -r src crates load-tests
COPY . .
# Cargo goes by modification times, and what was copied may be older than what was just built.
RUN find src crates -name "*.rs" -exec touch {} + \
    && bash deploy/release/build.sh /release \
    && bash deploy/release/rootfs.sh /release/delo /rootfs

FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS cuda-build
# The generation of the GPUs, as nvidia-smi --query-gpu=compute_cap names it without the point: 80 A100, 90 H100 and H200.
ARG CUDA_COMPUTE_CAP=80
ENV CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP} \
    RUSTUP_HOME=/usr/local/rustup \
    CARGO_HOME=/usr/local/cargo \
    PATH=/usr/local/cargo/bin:/usr/local/nvidia/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY --from=rust /usr/local/rustup /usr/local/rustup
COPY --from=rust /usr/local/cargo /usr/local/cargo
WORKDIR /build
COPY --from=manifests /build .
RUN cargo build --release --locked --package delo --features cuda && rm -r src crates load-tests
COPY . .
RUN find src crates -name "*.rs" -exec touch {} + \
    && cargo build --release --locked --package delo --bin delo --features cuda \
    && install -D -m 755 target/release/delo /out/usr/local/bin/delo \
    && strip --strip-debug /out/usr/local/bin/delo \
    && install -D -m 644 -t /out/usr/share/doc/delo LICENSE THIRD_PARTY_NOTICES.md README.md

# The container runtime brings the driver's library; cuBLAS and cuRAND are in the base.
FROM nvidia/cuda:${CUDA_VERSION}-runtime-ubuntu24.04 AS cuda
LABEL org.opencontainers.image.title="delo-cuda" \
      org.opencontainers.image.description="Inference of many tasks over one frozen vision-language transformer, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 65532 delo \
    && useradd --system --uid 65532 --gid delo --home-dir /var/lib/delo --create-home --shell /usr/sbin/nologin delo
COPY --from=cuda-build /out /
USER 65532:65532
WORKDIR /var/lib/delo
ENV DELO_SERVER__LISTEN=0.0.0.0:50051 \
    DELO_METRICS__LISTEN=0.0.0.0:9464 \
    DELO_LOGGING__FORMAT=json \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 50051 8080 9464
STOPSIGNAL SIGTERM
# A GPU takes longer to start than a CPU.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --start-interval=1s --retries=3 \
    CMD ["delo", "health"]
ENTRYPOINT ["delo"]
CMD ["serve"]

# The binary is static: beside it the image has only what deploy/release/rootfs.sh lays out, and no shell.
FROM scratch
LABEL org.opencontainers.image.title="delo" \
      org.opencontainers.image.description="Inference of many tasks over one frozen vision-language transformer" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /rootfs /
# Some builders give what they copy to root.
COPY --from=build --chown=65532:65532 /rootfs/var/lib/delo /var/lib/delo
USER 65532:65532
WORKDIR /var/lib/delo
# Classifier and metrics are for others; the admin service stays on the container's own loopback: docker exec CONTAINER delo admin list.
ENV DELO_SERVER__LISTEN=0.0.0.0:50051 \
    DELO_METRICS__LISTEN=0.0.0.0:9464 \
    DELO_LOGGING__FORMAT=json
# 8080 is HTTP, where DELO_HTTP__LISTEN=0.0.0.0:8080. The admin's 50052 is not here, so that docker run -P does not publish it.
EXPOSE 50051 8080 9464
STOPSIGNAL SIGTERM
# Asks by the server's settings in the environment (DELO_CONFIG=FILE for a file of them); flags of the command are unknown to it. With TLS and tokens too.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=1s --retries=3 \
    CMD ["delo", "health"]
ENTRYPOINT ["delo"]
CMD ["serve"]
