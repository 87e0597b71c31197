# What Ray nodes run: ray, torch and the trainer. TORCH_INDEX: another index of wheels, for CPUs or other GPUs.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY attune attune
COPY api api
COPY db db
COPY worker worker
COPY trainer trainer
RUN python -m venv /opt/attune \
 && /opt/attune/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
      --constraint requirements.lock '.[trainer,ray]'

FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends tini curl \
 && rm -rf /var/lib/apt/lists/* && useradd --create-home --uid 10001 attune \
 && install --directory --owner=attune /home/attune/.cache
COPY --from=build /opt/attune /opt/attune
# a volume on it takes over its owner
RUN install --directory --owner attune --group attune /home/attune/.cache
# Ray's token authentication switches itself on where it finds a token file: say which it is.
ENV PATH=/opt/attune/bin:$PATH PYTHONUNBUFFERED=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
USER attune
ENTRYPOINT ["tini", "--"]
CMD ["ray", "start", "--head", "--block", "--dashboard-host=0.0.0.0"]
