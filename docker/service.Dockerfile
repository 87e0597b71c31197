# API, worker, beat and migrations: no torch, no ray. One image, the command decides.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY attune attune
COPY api api
COPY db db
COPY worker worker
COPY trainer trainer
RUN python -m venv /opt/attune \
 && /opt/attune/bin/pip install --no-cache-dir --constraint requirements.lock '.[service]'

FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends tini curl \
 && rm -rf /var/lib/apt/lists/* && useradd --create-home --uid 10001 attune
COPY --from=build /opt/attune /opt/attune
ENV PATH=/opt/attune/bin:$PATH PYTHONUNBUFFERED=1
USER attune
EXPOSE 8321
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "api", "--host", "0.0.0.0"]
