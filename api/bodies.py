"""What a request may carry: so many bytes, and nothing that JSON's readers or a database cannot hold."""

import math
import re
from collections.abc import Mapping
from typing import Any

import rfc8785
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import answer

MIB = 1 << 20
LARGEST = 16 * MIB
"""Bytes of a body, unless `PLACES` says otherwise."""
PART = 64 * MIB
UPLOAD = 256 * MIB
PLACES = ((re.compile(r"/v1/datasets/[^/]+/parts/[^/]+"), PART), (re.compile(r"/v1/datasets"), UPLOAD))


class BodyLimit:
    """Answers 413 where a body is too large, before it is read where its length is said."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = next((size for place, size in PLACES if place.fullmatch(scope["path"])), LARGEST)
        said = f"a body may have {most // MIB} MiB here; send less, or in parts"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            response = answer(413, said, code="too_large", headers={"connection": "close"})
            await response(scope, receive, send)
            return
        got = 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > most:
                raise HTTPException(413, said)
            return message

        await self.app(scope, counted, send)


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """The body; ValueError where it holds a number or text that would be another one after storing: no JSON of its
    own, but what parsers let through."""
    try:
        written = rfc8785.dumps(body)
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise ValueError(f"holds a value that JSON does not: {error}") from None
    if re.search(rb"(?<!\\)(\\\\)*\\u0000", written):
        raise ValueError("holds a text with a NUL character; take it out")
    return body


def finite(value: Any) -> Any:
    """Plain data with null for nan and infinity, which JSON does not have and runners may send."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
