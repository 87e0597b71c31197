"""A Ray that answers each request just before the caller's patience ends, on a clock that stands still otherwise."""

from fake_ray import FakeRay

from worker.ray_jobs import REQUEST_S

LONGEST_S = 30.0
"""A tick takes no longer."""
REQUESTS = {"submit": 2, "stop": 2, "delete": 2}
"""What these calls make at most."""


class SlowRay(FakeRay):
    """`monotonic` takes the place of a worker module's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0

    def monotonic(self) -> float:
        return self.at

    def _answer(self, call: str) -> None:
        self.at += REQUEST_S * REQUESTS.get(call, 1)
        super()._answer(call)
