"""Bodies of HTTP requests: bounded one by one and all together, and unpacked without trusting what is inside."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from skerry_agent.engine.errors import OverloadedError, SchemaError
from skerry_agent.serving.errors import TooLargeError, UnsupportedEncodingError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: Memory of all bodies that are being received (bytes). One body of the largest size always has room.
TOTAL_BYTES = 128 << 20
#: zlib: read gzip and zlib headers alike.
_ANY_HEADER = 32 + zlib.MAX_WBITS


class Bodies:
    """Receives bodies; used by one event loop.

    Args:
        total_bytes: Memory of all that are being received.
    """

    def __init__(self, total_bytes: int = TOTAL_BYTES) -> None:
        self._total_bytes = total_bytes
        self._held = 0
        self._open = 0

    async def receive(self, receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
        """Read a body of at most ``limit`` bytes, unpacked, whatever its headers say.

        Args:
            receive: Of the ASGI connection.
            headers: Of the request.
            limit: Largest valid body.

        Raises:
            TooLargeError: Larger.
            UnsupportedEncodingError: Packed in a way that is not read here.
            SchemaError: It ended early, or is not what its encoding says.
            OverloadedError: Too many bodies are being received.
        """
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b"", b"gzip", b"deflate"):
            raise UnsupportedEncodingError(encoding.decode("latin-1"))
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise TooLargeError("body", limit)
        message = await receive()
        data: bytes = message.get("body", b"")
        if message["type"] != "http.request" or message.get("more_body") or len(data) > limit:
            data = await self._rest(receive, message, limit)
        return data if encoding in (b"identity", b"") else unpack(data, limit)

    async def _rest(self, receive: Receive, message: MutableMapping[str, Any], limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        self._open += 1
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise SchemaError("body", expected="all of it", got=f"{size} bytes, then a closed connection")
                part: bytes = message.get("body", b"")
                size += len(part)
                self._held += len(part)
                parts.append(part)
                if size > limit:
                    raise TooLargeError("body", limit)
                if self._held > self._total_bytes and self._open > 1:
                    raise OverloadedError(self._open, self._open - 1)
                if not message.get("more_body"):
                    return b"".join(parts)
                message = await receive()
        finally:
            self._open -= 1
            self._held -= size


def unpack(data: bytes, limit: int) -> bytes:
    """Unpack gzip or zlib of at most ``limit`` bytes; a bomb is given up at the limit.

    Raises:
        TooLargeError: It holds more.
        SchemaError: It is not whole, or something else.
    """
    unpacker = zlib.decompressobj(_ANY_HEADER)
    try:
        plain = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise SchemaError("body", expected="gzip or zlib, as Content-Encoding says", got=str(error)) from error
    if len(plain) > limit:
        raise TooLargeError("body, unpacked", limit)
    if not unpacker.eof or unpacker.unused_data:
        got = "more after it" if unpacker.eof else "a part of it"
        raise SchemaError("body", expected="one whole packed body", got=got)
    return plain
