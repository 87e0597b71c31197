"""Counter-based randomness: raw Philox output, so that a stream is the same on every machine and NumPy version.

Only `random_raw` is used: the derived methods of `numpy.random.Generator` have changed between versions, the
generator's own words (Salmon et al. 2011, Philox4x64-10) have not. Golden vectors are in the tests.
"""

import hashlib

import numpy as np


def philox(seed: int, stream: str, count: int) -> np.ndarray:
    """The first `count` uint64 words of the stream named `stream` under `seed`, shape (count,)."""
    words = np.random.Philox(key=_key(seed, stream), counter=0).random_raw(count)
    return np.asarray(words, dtype=np.uint64)


def word(seed: int, stream: str, index: int) -> int:
    """One uint64 word of another such stream, by its number, without those before it."""
    return int(np.random.Philox(key=_key(seed, stream), counter=index).random_raw())


def _key(seed: int, stream: str) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)


def permutation(seed: int, stream: str, count: int) -> np.ndarray:
    """A uniform permutation of range(count), shape (count,) int64: the ranks of `count` random words."""
    return np.argsort(philox(seed, stream, count), kind="stable")


def seed_of(seed: int, *names: object) -> int:
    """A 63-bit seed for a library that wants one (torch), from the job's seed and what it is for."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
