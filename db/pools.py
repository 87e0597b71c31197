"""A pool: jobs that one warm runner can serve one after the other."""

import hashlib

import rfc8785

from trainer.resolve import Resolved

ISOLATED = "single"


def pool_of(resolved: Resolved, code: str, *, job: str = "") -> str:
    """What a runner loads once and may keep: base and revision, family, arithmetic, devices, code. A job that changes
    the base itself has a pool of its own, named by `job`."""
    spec = resolved.spec
    alone = spec.tuning.method != "lora" or spec.tuning.encoder == "full"
    key = {
        "base": spec.base, "revision": resolved.base_revision, "family": spec.family, "precision": spec.precision,
        "gpus": spec.resources.gpus, "code": code, "isolation": f"{ISOLATED} {job or resolved.hash}" if alone else "",
    }  # fmt: skip
    return hashlib.sha256(rfc8785.dumps(key)).hexdigest()[:32]
