# One Dockerfile, one image per service:  docker build --build-arg SERVICE=orders -t market/orders:dev .
# SERVICE is products, orders, inventory, notifications, graphql, storefront or testbed (the mail catcher and the demo
# catalogue, for test clusters).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- the packages that the service needs ------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS packages
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends binutils >/dev/null
RUN python3 -m venv /build/pip
ARG SERVICE
COPY requirements/${SERVICE}.lock /build/requirements.lock
# Wheels only: nothing is compiled, so no compiler is needed. pip checks each against its hash in the lock.
RUN /build/pip/bin/pip install --target /build/packages --require-hashes --no-deps --only-binary :all: \
      --no-cache-dir --no-compile --disable-pip-version-check -r /build/requirements.lock
# A fifth of an image would be symbols and debug information, which no process reads.
RUN find /build/packages -name '*.so*' -type f -exec strip --strip-unneeded {} +
COPY deploy/image/packages.exclude /build/
RUN mkdir -p /opt/market/packages && \
    tar --create --directory=/build/packages --exclude-from=/build/packages.exclude . | \
    tar --extract --directory=/opt/market/packages
# Compiled here because the root file system is read-only at run time; by hash, so that two builds give the same bytes.
RUN PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash /opt/market/packages

# --- the service itself, and the code that all services share ---------------------------------------------
FROM ${PYTHON_IMAGE} AS application
ARG SERVICE
COPY src/market /build/market
COPY dev/market_dev /build/market_dev
COPY deploy/image/application.exclude deploy/image/testbed.files /build/
RUN files=market/${SERVICE} && \
    if [ "${SERVICE}" = testbed ]; then files=$(cat /build/testbed.files); fi && \
    mkdir -p /opt/market/app && cd /build && \
    tar --create --exclude-from=application.exclude market/__init__.py market/kit market/contracts ${files} | \
    tar --extract --directory=/opt/market/app
RUN PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash /opt/market/app

# --- the image: Python and these two folders --------------------------------------------------------------
FROM ${PYTHON_IMAGE}
ARG SERVICE
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="market-${SERVICE}" \
      org.opencontainers.image.description="Market, an online shop of six small services: ${SERVICE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages /opt/market/packages /opt/market/packages
COPY --from=application /opt/market/app /opt/market/app
ENV PYTHONPATH=/opt/market/app:/opt/market/packages \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SERVICE=${SERVICE} \
    CONFIG_PATH=/etc/market/config.yaml
USER 10001:10001
WORKDIR /opt/market/app
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# For Docker alone; Kubernetes has its own probes. The admin port returns 200 when the service is ready.
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/readyz', timeout=3)"]
CMD ["sh", "-c", "exec python -m market.$SERVICE"]
