# One file, one image per service:  docker build --build-arg SERVICE=orders -t market/orders:dev .
# SERVICE is products, orders, inventory, notifications, graphql, or testbed (mail catcher and demo catalogue, for test clusters).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ARG SERVICE
# No pip in the environment that is copied on; the builder's own installs into it.
RUN python3 -m venv --without-pip /opt/market
COPY requirements/${SERVICE}.lock /build/requirements.lock
# Wheels only: nothing is compiled, so nothing to compile with is needed. Each is checked against its hash in the lock.
RUN python3 -m venv /build/pip && \
    /build/pip/bin/pip --python /opt/market/bin/python install --require-hashes --no-deps --only-binary :all: \
      --no-cache-dir --no-compile --disable-pip-version-check -r /build/requirements.lock
# What no process of ours opens: type stubs, C sources, the packages' own tests, the client of a schema registry.
RUN cd /opt/market/lib/python3*/site-packages && \
    rm -rf confluent_kafka/schema_registry confluent_kafka/avro && \
    find . \( -name '*.pyi' -o -name '*.pxd' -o -name '*.pyx' -o -name '*.c' -o -name '*.h' \) -type f -delete && \
    find . -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
COPY deploy/image/strip.py /build/strip.py
RUN python3 /build/strip.py /opt/market/lib
# The service's own package, and what all share.
COPY src/market /build/market
COPY dev/market_dev /build/market_dev
RUN mkdir -p /opt/market/app/market && cd /build/market && \
    own=${SERVICE} && if [ "$own" = testbed ]; then own=local; fi && \
    cp -r __init__.py kit contracts "$own" /opt/market/app/market/ && \
    rm -rf /opt/market/app/dev/market_dev/chaos /opt/market/app/dev/market_dev/stack/kafka
# Compiled here, for the root file system is read-only where it runs; by hash, so that two builds give the same bytes.
RUN PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash /opt/market/lib /opt/market/app

FROM ${PYTHON_IMAGE}
ARG SERVICE
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="market-${SERVICE}" \
      org.opencontainers.image.description="Market, an online shop of five small services: ${SERVICE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /opt/market /opt/market
ENV PATH=/opt/market/bin:$PATH \
    PYTHONPATH=/opt/market/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SERVICE=${SERVICE} \
    CONFIG_PATH=/etc/market/config.yaml
USER 10001:10001
WORKDIR /opt/market/app
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# Docker's own check; Kubernetes has its probes. The admin port answers 200 when the service can serve.
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/readyz', timeout=3)"]
CMD ["sh", "-c", "exec python -m market.$SERVICE"]
