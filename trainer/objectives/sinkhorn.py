"""Sinkhorn divergence between clouds of points on the unit sphere (Feydy et al., arXiv 1810.08278).

Squared distances / 2, uniform weights, regularisation blur^2, reached from the squared diameter by quarters, with
averaged updates; potentials are then made once more with the gradient, the ones before being held (section 3.2 there).
Departure from arXiv 2412.15712's code: the diameter is that of the sphere, not of the points at hand.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

DIAMETER, SCALING = 2.0, 0.5


def divergences(x: Sequence[torch.Tensor], y: Sequence[torch.Tensor], blur: float) -> torch.Tensor:
    """Clouds x[i] and y[j], each (points, width) of length 1 → divergence of every pair (clouds of x, clouds of y)."""
    (u, a), (v, b) = _padded(x), _padded(y)
    schedule = _schedule(blur)
    pair_a, pair_b = a[:, None].expand(-1, len(b), -1), b[None].expand(len(a), -1, -1)
    # Each potential's gradient goes to its own points alone.
    f, g = _potentials(_cost(u, v.detach()), _cost(u.detach(), v), pair_a, pair_b, schedule)
    own_x, own_y = (_own(points @ points.detach().mT, w, schedule) for points, w in ((u, a), (v, b)))
    return (pair_a.exp() * (f - own_x[:, None])).sum(-1) + (pair_b.exp() * (g - own_y[None])).sum(-1)


def _padded(clouds: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(clouds, most points, width), and log weights (clouds, most points): -inf where a cloud has no point."""
    most = max(map(len, clouds))
    points = torch.stack([F.pad(c, (0, 0, 0, most - len(c))) for c in clouds])
    counts = torch.tensor([len(c) for c in clouds], device=points.device)
    there = torch.arange(most, device=points.device) < counts[:, None]
    return points, torch.where(there, -counts[:, None].to(points.dtype).log(), -torch.inf)


def _schedule(blur: float) -> list[float]:
    steps = torch.arange(2 * math.log(DIAMETER), 2 * math.log(blur), 2 * math.log(SCALING), dtype=torch.float64)
    return [DIAMETER**2, *steps.exp().tolist(), blur**2]


def _cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Half the squared distances of unit vectors: (clouds of x, clouds of y, points, points)."""
    return 1 - torch.einsum("ind,jmd->ijnm", x, y)


def _softmin(epsilon: float, cost: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """cost (…, n, m), h (…, m) → (…, n)."""
    return -epsilon * (h[..., None, :] - cost / epsilon).logsumexp(-1)


def _potentials(cost_x, cost_y, a, b, schedule: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Dual potentials of the regularised transport: (…, n) with gradient by cost_x, (…, m) by cost_y."""
    with torch.no_grad():
        f, g = _softmin(schedule[0], cost_x, b), _softmin(schedule[0], cost_x.mT, a)
        for epsilon in schedule:
            to_f = _softmin(epsilon, cost_x, b + g / epsilon)
            to_g = _softmin(epsilon, cost_x.mT, a + f / epsilon)
            f, g = (f + to_f) / 2, (g + to_g) / 2
    return _softmin(epsilon, cost_x, b + g / epsilon), _softmin(epsilon, cost_y.mT, a + f / epsilon)


def _own(likeness: torch.Tensor, a: torch.Tensor, schedule: list[float]) -> torch.Tensor:
    """The potential of a cloud against itself (clouds, points); likeness (clouds, points, points)."""
    cost = 1 - likeness
    with torch.no_grad():
        f = _softmin(schedule[0], cost, a)
        for epsilon in schedule:
            f = (f + _softmin(epsilon, cost, a + f / epsilon)) / 2
    return _softmin(epsilon, cost, a + f / epsilon)
