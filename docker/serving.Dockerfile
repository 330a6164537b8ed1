# The serving image: BentoML and ONNX Runtime; no torch, no trainer, no compiler.
#
#   make docker-build

# The digest pins the base; .github/dependabot.yml updates it.
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# hadolint ignore=DL3006
FROM ${BASE} AS builder
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
# A certificate authority of your network can be mounted for this step and stays out of the image:
# --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    if [ -s /etc/ssl/certs/ca-certificates.crt ]; then export PIP_CERT=/etc/ssl/certs/ca-certificates.crt; fi; \
    python scripts/requirements.py base,serve > requirements.txt && \
    /opt/mario/bin/pip install -c constraints.txt --find-links wheels -r requirements.txt && \
    python scripts/requirements.py build > build.txt && \
    /opt/build/bin/pip install -c constraints.txt --find-links wheels -r build.txt
COPY CMakeLists.txt README.md LICENSE ./
COPY mario mario
COPY flows flows
COPY serving serving
# The image contains nothing that trains: no flows, no jobs, no training, no torch.
# hadolint ignore=DL3003
RUN rm -rf flows mario/jobs mario/training && \
    mkdir flows && touch flows/__init__.py && \
    PATH="/opt/build/bin:${PATH}" /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . && \
    /opt/mario/bin/pip install --no-deps dist/*.whl && \
    /opt/mario/bin/pip check && \
    cd / && /opt/mario/bin/python -c 'import mario.game._native, importlib.util as u; assert u.find_spec("torch") is None'

# hadolint ignore=DL3006
FROM ${BASE} AS serving
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mario-serving" \
      org.opencontainers.image.description="The champion as an action API" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT"
RUN groupadd --gid 10001 mario && \
    useradd --uid 10001 --gid mario --home-dir /home/mario --create-home mario
COPY --from=builder /opt/mario /opt/mario
WORKDIR /home/mario
ENV PATH=/opt/mario/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=1 \
    BENTOML_DO_NOT_TRACK=True \
    MLFLOW_DISABLE_TELEMETRY=true \
    MARIO_SERVING_HOST=0.0.0.0 \
    MARIO_SERVING_PORT=3000 \
    MARIO_SERVING_METRICS_PORT=3001
USER 10001:10001
EXPOSE 3000 3001
# Check liveness, not readiness: a service without a champion waits, and a restart does not help.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os,urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['MARIO_SERVING_PORT']}/livez\",timeout=4)"]
# It listens on all addresses, so it requires MARIO_SERVING_TOKENS or MARIO_SERVING_TOKENS_FILE.
ENTRYPOINT ["mario"]
CMD ["serve"]
