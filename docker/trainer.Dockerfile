# The trainer image: training, evaluation, the gate, the Prefect worker and the MLflow server.
#
#   make docker-build                                                                 CPU
#   make docker-build TORCH_FLAVOUR=cuda                                              CUDA
#
# By hand: docker build -f docker/trainer.Dockerfile --build-arg REVISION=$(git rev-parse HEAD) …
#
# The package index offers PyTorch with CUDA. For a smaller CPU image, put the wheel of the CPU build
# into wheels/: wheels there take precedence over the index. Without it the image works the same.

# The digest pins the base; .github/dependabot.yml updates it.
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# hadolint ignore=DL3006
FROM ${BASE} AS builder
ARG TORCH_FLAVOUR=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The release of the base determines the version of the compiler.
# hadolint ignore=DL3008
RUN command -v g++ >/dev/null || \
    { apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*; }
WORKDIR /src
RUN python -m venv /opt/mario && python -m venv /opt/build
COPY pyproject.toml constraints.txt ./
COPY scripts/requirements.py scripts/
# constraints.txt is copied again because the pattern *.whl may match nothing.
COPY constraints.txt wheels/*.whl wheels/
# A certificate authority of your network can be mounted for these steps and stays out of the image:
# --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt
# PyTorch is installed first, by its exact version, so that pip does not replace it by another build.
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    case "${TORCH_FLAVOUR}" in \
        cpu) find_links="--find-links wheels" ;; \
        cuda) find_links="" ;; \
        *) echo "TORCH_FLAVOUR: got '${TORCH_FLAVOUR}', expected cpu or cuda" >&2; exit 2 ;; \
    esac; \
    if [ -s /etc/ssl/certs/ca-certificates.crt ]; then export PIP_CERT=/etc/ssl/certs/ca-certificates.crt; fi; \
    /opt/mario/bin/pip install -c constraints.txt ${find_links} "$(grep -m1 '^torch==' constraints.txt)"
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    if [ -s /etc/ssl/certs/ca-certificates.crt ]; then export PIP_CERT=/etc/ssl/certs/ca-certificates.crt; fi; \
    python scripts/requirements.py base,train,flows > requirements.txt && \
    /opt/mario/bin/pip install -c constraints.txt --find-links wheels -r requirements.txt && \
    python scripts/requirements.py build > build.txt && \
    /opt/build/bin/pip install -c constraints.txt --find-links wheels -r build.txt
COPY CMakeLists.txt README.md LICENSE ./
COPY mario mario
COPY flows flows
COPY serving serving
# `pip wheel` omits the native console if it cannot be compiled; the import below then fails the build.
# hadolint ignore=DL3003
RUN PATH="/opt/build/bin:${PATH}" /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . && \
    /opt/mario/bin/pip install --no-deps dist/*.whl && \
    /opt/mario/bin/pip check && \
    cd / && /opt/mario/bin/python -c 'import mario.game._native'

# hadolint ignore=DL3006
FROM ${BASE} AS trainer
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mario-trainer" \
      org.opencontainers.image.description="Trains, evaluates and judges agents that play Super Mario Bros" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT"
RUN groupadd --gid 10001 mario && \
    useradd --uid 10001 --gid mario --home-dir /home/mario --create-home mario && \
    install -d -o mario -g mario /runs /artifacts /targets
COPY --from=builder /opt/mario /opt/mario
WORKDIR /app
COPY configs configs
COPY flows flows
COPY prefect.yaml ./
ENV PATH=/opt/mario/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    MARIO_RUNS_DIR=/runs \
    MARIO_GIT_COMMIT=${REVISION} \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
VOLUME ["/runs"]
# A training run is healthy while its metrics page (MARIO_METRICS_PORT) answers; compose.yaml and k8s/
# define the health checks of the other commands.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=5 \
    CMD ["python", "-c", "import os,urllib.request as u; p=os.environ.get('MARIO_METRICS_PORT','0'); p=='0' or u.urlopen(f'http://127.0.0.1:{p}/metrics',timeout=4)"]
# Python as process 1 ignores SIGTERM without a handler: run with --init (init: true).
ENTRYPOINT ["mario"]
CMD ["--help"]
