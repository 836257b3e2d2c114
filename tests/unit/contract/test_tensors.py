"""The wire form of a model's tensors."""

from __future__ import annotations

import numpy as np

from skerry_contract.tensors import Array, encode_bundle, encode_tensor
from skerry_contract.v1.common_pb2 import TensorBundle


def test_a_bundle_has_the_bytes_that_protobuf_writes() -> None:
    """It is written without copying tensors into messages; whoever reads it needs not know."""
    arrays: dict[str, Array] = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "scalar": np.array(2.5, dtype=np.float64),
        "empty": np.zeros((0, 3), dtype=np.int64),
        "": np.array([1], dtype=np.uint8),
        "large": np.full(70_000, 7, dtype=np.float32),
    }
    message = TensorBundle(tensors=[encode_tensor(name, array) for name, array in arrays.items()])
    assert encode_bundle(arrays) == message.SerializeToString(deterministic=True)
