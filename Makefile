# Two commands do everything on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo demo-orders test test-integration test-faults test-processes test-servers test-presets check bench-flops replications replication-docs base docs clean

install: $(STAMP)

# CPU wheels unless TORCH says otherwise; everything is pinned in requirements.lock.
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Attune needs Python >= 3.11; $$($(PYTHON) --version) found. Set PYTHON=python3.11 (or newer)."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Starts the service on this machine, sends it the study and follows it; the service stays up until `attune down`.
# The key makes a second call look at the same study again instead of training it twice.
demo: install
	$(BIN)/attune up
	$(BIN)/attune submit suites/arabic-commands.yaml --idempotency-key make-demo --watch --out attune-demo
	@echo "The service goes on running; end it with: $(BIN)/attune down"

demo-orders: install
	$(BIN)/attune up
	$(BIN)/attune submit suites/coffee-orders.yaml --idempotency-key make-demo-orders --watch --out attune-demo-orders
	@echo "The service goes on running; end it with: $(BIN)/attune down"

# All tests but those that start a Ray cluster, a browser or the service's processes.
test: install
	$(BIN)/python -m pytest -m "not ray and not browser and not process"

# Those: a real Ray head, real workers and runners, a real browser, and real Postgres, Redis and S3 (what Debian packages
# of it is missing, apt installs; nothing of it is left running).
test-integration: install
	@sh tests/install_servers.sh
	@$(MAKE) --no-print-directory --jobs 3 test-faults test-processes test-servers

# Its three parts, which wait as much as they compute: what dies or goes away in the middle of a job; processes of this
# machine one by one (`attune up`, runners, worker); everything else.
INTEGRATION := -m pytest -v --durations=30 --durations-min=5 -m "ray or browser or process"
PROCESSES := $(wildcard tests/test_local*.py tests/test_runner*.py tests/test_worker*.py tests/test_ray*.py)
test-faults: install
	$(BIN)/python $(INTEGRATION) $(wildcard tests/test_faults*.py)

test-processes: install
	$(BIN)/python $(INTEGRATION) $(PROCESSES)

test-servers: install
	$(BIN)/python $(INTEGRATION) $(PROCESSES:%=--ignore=%) --ignore-glob="tests/test_faults*.py" --ignore=tests/test_presets_service.py

# Every preset in small through a real local service: some hundred jobs, ten minutes or more.
test-presets: install
	$(BIN)/python -m pytest -v tests/test_presets_service.py

check: install
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# FLOPs of a training step against stock transformers + PEFT, counted; some 15 minutes. All benchmarks: benchmarks/.
bench-flops: install
	$(BIN)/python benchmarks/flops.py

# A study per paper on the tiny base; beside other work they took 10 to 44 minutes each on two cores. Stopped, it goes on
# with the next call.
replications: install
	$(BIN)/python -m benchmarks.replications

# docs/replications.md and its figures from the results that are stored in suites/replications/results.
replication-docs: install
	$(BIN)/python -m benchmarks.replications --docs

# Rebuilds the tiny base from text and synthetic speech; prints its gate. About two hours on two cores.
base: install
	$(BIN)/python -m models.recipe.build --out models/tiny

# The spec reference and the JSON Schema, generated from the fields.
docs: install
	$(BIN)/attune schema --markdown > docs/spec.md
	$(BIN)/attune schema > docs/spec.schema.json

clean:
	rm -rf .venv build attune-demo attune-demo-orders
