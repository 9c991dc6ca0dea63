# eomt-deploy on an NVIDIA GPU, with TensorRT:
#
#     docker build -f docker/tensorrt.Dockerfile -t eomt-deploy:tensorrt .
#
# TensorRT, CUDA and NVRTC come from NVIDIA's image. It builds engines for the GPU of this machine,
# and serves them. The host needs a driver for CUDA 13 and the NVIDIA Container Toolkit. See
# docs/containers.md.

# docs/containers.md shows how to pin the digest of an image.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.15-slim-bookworm
# TensorRT 11.1 and CUDA 13.3. An engine runs only with the version that built it.
ARG TENSORRT_IMAGE=nvcr.io/nvidia/tensorrt:26.07-py3

# The wheel: hatch and the Zig compiler, which do not get into the image.
FROM ${PYTHON_IMAGE} AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY docker/locks/build.txt docker/locks/
RUN python3 -m venv /build \
    && /build/bin/pip install --require-hashes -r docker/locks/build.txt
COPY . .
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .
# NVIDIA's image may have no pip. It is plain Python, so any Python can run this copy.
RUN install -d /opt/pip \
    && cp -r "$(python3 -c 'import os, pip; print(os.path.dirname(pip.__file__))')" /opt/pip/

# The packages. The first command stops the build if the image has no Python bindings of TensorRT.
# Python files are compiled here, since the image may run read-only. They are recognised by their
# hash, since a copy may change their times.
FROM ${TENSORRT_IMAGE} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /locks
COPY --from=wheel /opt/pip /opt/pip
COPY docker/locks/tensorrt.txt ./
RUN python3 -c 'import importlib.util as u; assert u.find_spec("tensorrt"), "no tensorrt"' \
    && python3 -m venv --without-pip --system-site-packages /opt/eomt-deploy \
    && PYTHONPATH=/opt/pip python3 -m pip --python /opt/eomt-deploy install --no-compile \
        --ignore-installed --require-hashes -r tensorrt.txt \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/eomt-deploy

# Our package, in an environment at the same place. It becomes a layer of its own: a change of our
# code does not change the layer of the packages.
FROM ${TENSORRT_IMAGE} AS application
COPY --from=wheel /opt/pip /opt/pip
COPY --from=wheel /dist /dist
RUN python3 -m venv --without-pip --system-site-packages /opt/eomt-deploy \
    && PYTHONPATH=/opt/pip python3 -m pip --python /opt/eomt-deploy --no-cache-dir install \
        --no-compile --no-deps --no-index /dist/*.whl \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/eomt-deploy

FROM ${TENSORRT_IMAGE} AS serve
ENV PATH=/opt/eomt-deploy/bin:$PATH \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1
# The NVIDIA Container Toolkit reads these variables.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# /cache can be written by any user, for `docker run --user` and OpenShift choose another one.
RUN groupadd --gid 10001 eomt \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /cache \
        --shell /usr/sbin/nologin eomt \
    && install -d -m 1777 /cache \
    && install -d -m 755 /models
COPY docker/entrypoint.sh /usr/local/bin/
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import http.client; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/v2/health/ready'); raise SystemExit(c.getresponse().status != 200)"]
COPY --from=packages /opt/eomt-deploy /opt/eomt-deploy
COPY --from=application /opt/eomt-deploy/lib /opt/eomt-deploy/lib
COPY --from=application /opt/eomt-deploy/bin/eomt-deploy /opt/eomt-deploy/bin/
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="eomt-deploy TensorRT" \
    org.opencontainers.image.description="Build and run TensorRT engines of EoMT" \
    org.opencontainers.image.licenses="MIT AND Bitstream-Vera" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
USER 10001:10001
WORKDIR /cache
