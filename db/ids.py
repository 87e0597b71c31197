"""Ids: a prefix and a lower-case ULID, so that they sort by time and say what they are."""

import os
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32
_lock, _last = threading.Lock(), 0


def new_id(prefix: str) -> str:
    """`prefix` + 26 characters: 48 bits of milliseconds, 80 random bits. Those of one process never go backwards, so
    that jobs of one transaction sort as they were made."""
    global _last
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    with _lock:
        _last = number = max(number, _last + 1)
    return prefix + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))


def made_at(id_: str) -> float:
    """When an id was made, in unix seconds. ValueError where it is none of ours."""
    digits = id_.rpartition("-")[2]
    if len(digits) != 26:
        raise ValueError(f"{id_!r} is no id")
    number = 0
    for digit in digits:
        number = number << 5 | _ALPHABET.index(digit)
    return (number >> 80) / 1000
