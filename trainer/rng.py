"""Counter-based randomness: raw Philox output, so that a stream is the same on every machine and NumPy version.

Only `random_raw` is used: the derived methods of `numpy.random.Generator` have changed between versions, the
generator's own words (Salmon et al. 2011, Philox4x64-10) have not. Golden vectors are in the tests.
"""

import hashlib

import numpy as np


def philox(seed: int, stream: str, count: int) -> np.ndarray:
    """The first `count` uint64 words of the stream named `stream` under `seed`, shape (count,)."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    words = np.random.Philox(key=key, counter=0).random_raw(count)
    return np.asarray(words, dtype=np.uint64)


def permutation(seed: int, stream: str, count: int) -> np.ndarray:
    """A uniform permutation of range(count), shape (count,) int64: the ranks of `count` random words."""
    return np.argsort(philox(seed, stream, count), kind="stable")


def seed_of(seed: int, *names: object) -> int:
    """A 63-bit seed for a library that wants one (torch), from the job's seed and what it is for."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
