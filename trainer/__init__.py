"""The trainer: from a spec to a compared result. Runs alone; knows no database, queue or HTTP."""

import os

# Idle OpenMP threads must sleep, not spin: on a busy machine a small model's step took four times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
