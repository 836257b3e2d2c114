"""Inner products and squared distances between updates, exact enough to choose by.

Everything is measured from a centre (the model that the round started from), so that what the updates have in common
does not swamp what tells them apart, and is summed in float64: ``|x - y|^2 = |x|^2 + |y|^2 - 2 x.y`` in float32 from
the origin loses all digits when updates lie closer together than 1e-4 of their norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_contract.tensors import Array
from skerry_server.federation.aggregation.spool import UpdateSpool

Matrix = npt.NDArray[np.float64]


def gram(spool: UpdateSpool, rows: Sequence[int], centre: Mapping[str, Array]) -> Matrix:
    """Inner products of the updates' differences from ``centre``; float64 [rows, rows], symmetric.

    Takes the memory of one block and of the result, ``8 * rows ** 2`` bytes.
    """
    from scipy.linalg import blas

    syrk: Any = blas.dsyrk
    products = np.zeros((len(rows), len(rows)), np.float64, order="F")
    for segment in spool.layout.segments:
        for start, block in spool.blocks(segment, rows, share=1 / 3 if segment.dtype.itemsize == 4 else 1 / 2):
            middle = spool.layout.flat(centre, segment, start, start + block.shape[1])
            difference = np.subtract(block, middle, dtype=np.float64)
            products = syrk(1.0, difference.T, beta=1.0, c=products, trans=1, overwrite_c=1)
    upper: Matrix = np.triu(products)
    return upper + np.triu(products, 1).T


def squared_distances(products: Matrix) -> Matrix:
    """Squared distances between all pairs from their inner products (:func:`gram`); none is below zero."""
    squares = np.diag(products)
    distances: Matrix = np.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances
