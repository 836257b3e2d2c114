"""Files by digest for devices that download over HTTPS: the same content as over MQTT, by ranges."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from skerry_contract.limits import CHUNK_BYTES
from skerry_server.device_api.byte_range import ByteRange, UnsatisfiableError, parse_range
from skerry_server.device_api.caller import Caller, Context
from skerry_server.device_api.problems import answer
from skerry_server.releases.artifacts import ArtifactStore

router = APIRouter(prefix="/device/v1")


@router.get("/files/{sha256}", response_class=Response)
def file(sha256: str, request: Request, context: Context, device_id: Caller) -> Response:
    """A file, or one range of it; a client that names another content in ``If-Range`` gets all of it."""
    store = context.artifacts
    size = store.size(sha256)
    tag = f'"{sha256}"'
    same = request.headers.get("if-range", tag) == tag
    try:
        wanted = parse_range(request.headers.get("range") if same else None, size)
    except UnsatisfiableError as error:
        refusal = answer(416, str(error))
        refusal.headers["content-range"] = f"bytes */{size}"
        return refusal
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=31536000, immutable",
        "content-length": str(wanted.length),
        "etag": tag,
    }
    if wanted.partial:
        headers["content-range"] = wanted.content_range(size)
    pieces = _pieces(store, sha256, wanted)
    first = next(pieces, b"")  # a damaged file is refused before the answer begins
    return StreamingResponse(
        _after(first, pieces),
        status_code=206 if wanted.partial else 200,
        headers=headers,
        media_type="application/octet-stream",
    )


def _pieces(store: ArtifactStore, sha256: str, wanted: ByteRange) -> Iterator[bytes]:
    """The range, at most a chunk at a time; the store checks the file before its first byte is read."""
    position, end = wanted.first, wanted.first + wanted.length
    while position < end:
        index, skip = divmod(position, CHUNK_BYTES)
        data = store.open_chunk(sha256, index, CHUNK_BYTES)[skip : skip + end - position]
        yield data
        position += len(data)


def _after(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
