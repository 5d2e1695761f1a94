# wsiad with all that it needs to run: no network, no root, a root file system that may be read-only.
#
#   docker build -t wsiad .                                                            # CPU
#   docker build -t wsiad:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .       # NVIDIA GPUs
#
# How to run it is in docs/containers.md.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-trixie AS build
# Where torch and torchvision come from: PyPI's own need CUDA, those of this index do without.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=frames,hpc,timm,tune
WORKDIR /build
RUN python -m venv /opt/wsiad
COPY pyproject.toml README.md LICENSE ./
COPY requirements/constraints.txt requirements/
COPY configs/zoo configs/zoo
COPY wsiad wsiad
# The versions that every change is tested with; OpenSlide comes as a wheel.
RUN /opt/wsiad/bin/python -m pip install --no-cache-dir -c requirements/constraints.txt --extra-index-url "${TORCH_INDEX}" ".[${EXTRAS}]"

FROM python:${PYTHON}-slim-trixie
LABEL org.opencontainers.image.title="wsiad" \
      org.opencontainers.image.description="Whole-slide pathology anomaly detection" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin wsiad
COPY --from=build /opt/wsiad /opt/wsiad
# Caches that libraries write go to /tmp, the one folder that must be writable; nothing is downloaded.
ENV PATH=/opt/wsiad/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba \
    TORCH_HOME=/weights/torch \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /work
ENTRYPOINT ["wsiad"]
CMD ["--help"]
