"""Messages and headers of the shared-memory door, and that its client is light."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.serving import shared_memory_layout as layout

geometries = st.builds(
    layout.Geometry,
    slots=st.integers(1, 8),
    rows=st.integers(1, 64),
    shape=st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple),
    classes=st.integers(1, 1024),
    features=st.integers(1, 64),
    names_bytes=st.integers(2, 100_000),
)
words = st.text(max_size=15).map(lambda text: text.replace("\0", ""))


def test_a_geometry_by_hand() -> None:
    g = layout.Geometry(slots=2, rows=3, shape=(2, 5), classes=4, features=7, names_bytes=20)
    assert g.row_bytes == 40
    assert g.first_slot == 4096
    assert g.scores_offset == 1152  # 1024 + 3 * 40 = 1144, rounded up to 64
    assert g.features_offset == 1216  # 1152 + 3 * 4 * 4 = 1200
    assert g.slot_bytes == 4096
    assert (g.slot_offset(1), g.region_bytes) == (8192, 12288)


@given(g=geometries)
def test_nothing_overlaps_and_all_is_inside(g: layout.Geometry) -> None:
    ends = (layout.INPUT_OFFSET, g.scores_offset, g.features_offset, g.slot_bytes)
    sizes = (g.rows * g.row_bytes, g.rows * g.classes * 4, g.rows * g.features * 4)
    assert layout.REQUEST_BYTES + layout.ANSWER_BYTES <= layout.INPUT_OFFSET
    for start, size, end in zip(ends, sizes, ends[1:], strict=False):
        assert start % 64 == 0
        assert start + size <= end
    assert g.names_bytes <= g.first_slot
    assert g.slot_offset(g.slots - 1) + g.slot_bytes == g.region_bytes


@given(g=geometries, task=words, release=words)
def test_a_welcome_comes_back(g: layout.Geometry, task: str, release: str) -> None:
    welcome = layout.Welcome(g, -1.5, 2.5, task, release, "input")
    assert layout.decode_welcome(layout.encode_welcome(welcome)) == welcome


@given(status=st.sampled_from(list(layout.Status)[1:]), error=st.text(max_size=900).map(lambda t: t.replace("\0", "")))
def test_a_refusal_comes_back_as_far_as_it_fits(status: layout.Status, error: str) -> None:
    got, text = layout.decode_refused(layout.encode_refused(status, error))
    assert got == status
    assert error.startswith(text)
    assert len(error.encode()) > 400 or text == error


@settings(max_examples=50)
@given(rows=st.integers(0, 2**32 - 1), deadline=st.integers(0, 2**64 - 1), request_id=words)
def test_headers_come_back(rows: int, deadline: int, request_id: str) -> None:
    memory = memoryview(bytearray(4096))
    request = layout.RequestHeader(rows, 24, deadline, request_id)
    layout.write_request(memory, 0, request)
    assert layout.read_request(memory, 0) == request
    answer = layout.AnswerHeader(0, rows, 1.5, 2, request_id, "release-one", "int8-x86")
    layout.write_answer(memory, 192, answer)
    assert layout.read_answer(memory, 192) == answer
    refused = layout.AnswerHeader(1, error="input: expected this")
    layout.write_answer(memory, 192, refused)
    assert layout.read_answer(memory, 192) == refused


@given(data=st.binary(max_size=600))
def test_noise_is_a_layout_error(data: bytes) -> None:
    for decode in (layout.decode_hello, layout.decode_welcome, layout.decode_refused):
        with pytest.raises(layout.LayoutError):
            decode(data)


def test_text_is_cut_between_characters() -> None:
    assert layout.cut_text("äöü", 6) == "äö".encode()


def test_the_client_is_light() -> None:
    heavy = ("onnxruntime", "grpc", "google.protobuf", "starlette", "cryptography", "skerry_contract")
    code = f"import sys, skerry_agent.client; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
