# eomt-deploy on a Jetson with JetPack 7.2 (Jetson Linux r39), with TensorRT. Build it there:
#
#     docker build -f docker/jetson.Dockerfile --build-context jetpack=/etc/apt \
#         -t eomt-deploy:jetson .
#
# NVIDIA's container registry has had no image for r39, so TensorRT comes from the apt source that
# JetPack has set up in /etc/apt of the Jetson. It is then the version that the host has. See
# docs/containers.md and docs/jetson.md.

# docs/containers.md shows how to pin the digest of an image.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.15-slim-bookworm
# The release of Ubuntu that JetPack 7 is based on.
ARG UBUNTU_IMAGE=docker.io/library/ubuntu:noble-20260610

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

# TensorRT, the CUDA runtime and NVRTC of JetPack 7.2. The marker file stops the packages of Jetson
# Linux from updating the boot loader, if one of them is installed.
FROM ${UBUNTU_IMAGE} AS jetpack-base
# The release in NVIDIA's apt source pins their packages.
# hadolint ignore=DL3008
RUN --mount=type=bind,from=jetpack,target=/host-apt \
    apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && cp /host-apt/sources.list.d/nvidia-l4t-apt-source.list /etc/apt/sources.list.d/ \
    && cp /host-apt/trusted.gpg.d/jetson-ota-public.* /etc/apt/trusted.gpg.d/ \
    && install -d /opt/nvidia/l4t-packages \
    && touch /opt/nvidia/l4t-packages/.nv-l4t-disable-boot-fw-update-in-preinstall \
    && apt-get update \
    && apt-get install -y --no-install-recommends \
        cuda-cudart-13-2 \
        cuda-nvrtc-13-2 \
        python3-libnvinfer \
    && rm -rf /var/lib/apt/lists/*

# The packages. The first command stops the build if the image has no Python bindings of TensorRT.
# Python files are compiled here, since the image may run read-only. They are recognised by their
# hash, since a copy may change their times.
FROM jetpack-base AS packages
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
FROM jetpack-base AS application
COPY --from=wheel /opt/pip /opt/pip
COPY --from=wheel /dist /dist
RUN python3 -m venv --without-pip --system-site-packages /opt/eomt-deploy \
    && PYTHONPATH=/opt/pip python3 -m pip --python /opt/eomt-deploy --no-cache-dir install \
        --no-compile --no-deps --no-index /dist/*.whl \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/eomt-deploy

FROM jetpack-base AS serve
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
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_HOME=/usr/local/cuda-13.2
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
LABEL org.opencontainers.image.title="eomt-deploy Jetson" \
    org.opencontainers.image.description="Build and run TensorRT engines of EoMT on a Jetson" \
    org.opencontainers.image.licenses="MIT AND Bitstream-Vera" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
USER 10001:10001
WORKDIR /cache
