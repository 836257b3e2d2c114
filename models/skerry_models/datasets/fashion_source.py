"""Finds Fashion-MNIST: a prepared file, the cache, or the public files.

Order: ``$SKERRY_DATA_DIR/fashion_mnist.npz``; ``<cache>/fashion_mnist.npz`` (what an earlier download was turned into);
the four published files below ``$SKERRY_FASHION_URL`` (default: the authors' repository). The cache is that of
:mod:`skerry_models.cache`. Pickles are never loaded; nothing half written stays in the cache.
Xiao, Rasul, Vollgraf, arXiv:1708.07747; MIT licence.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import os
import struct
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skerry_models.cache import cache_folder, find_prepared
from skerry_models.datasets.har_source import NETWORK_SECONDS
from skerry_models.errors import DataError

_LOG = logging.getLogger(__name__)
Pixels = npt.NDArray[np.uint8]
#: Folder of the published files (together about 30 MB).
PUBLIC_FILES = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
#: Bound on one published file, packed and unpacked (bytes).
FILE_BYTES = 64 << 20
#: Pixels along an edge.
EDGE = 28
#: Names of the labels 0 to 9.
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
_FILE = "fashion_mnist.npz"
_PARTS = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
_REMEDY = (
    "set SKERRY_DATA_DIR to a folder that holds fashion_mnist.npz, or SKERRY_FASHION_URL to a folder with the four "
    "published files (https://github.com/zalandoresearch/fashion-mnist), or run once with network access"
)


@dataclass(frozen=True)
class FashionImages:
    """The images in the published order.

    Attributes:
        x_train: uint8 [N, 28, 28], grey levels 0 to 255.
        y_train: uint8 [N], 0 to 9.
        x_test: uint8 [M, 28, 28], the published test part or a beginning of it.
        y_test: uint8 [M].
        origin: Where the data came from, for messages.
    """

    x_train: Pixels
    y_train: Pixels
    x_test: Pixels
    y_test: Pixels
    origin: str


def load_fashion() -> FashionImages:
    """Load the images by the rules of this module.

    Raises:
        DataError: They are nowhere; it lists every place that was tried and what happened there.
    """
    tried: list[str] = []
    found = find_prepared(_FILE, tried)
    if found is not None:
        return read_fashion_file(found)
    url = os.environ.get("SKERRY_FASHION_URL", "") or PUBLIC_FILES
    arrays: dict[str, Pixels] = {}
    for name, file in _PARTS.items():
        address = f"{url.rstrip('/')}/{file}"
        try:
            arrays[name] = _read_idx(_fetch(address))
        except (OSError, EOFError, http.client.HTTPException, ValueError, zlib.error) as error:
            tried.append(f"{address}: {error}")
            raise DataError("Fashion-MNIST is not there", looked_for=tried, remedy=_REMEDY) from error
    images = _checked(arrays, url)
    _keep(images, cache_folder() / _FILE)
    return images


def read_fashion_file(path: Path) -> FashionImages:
    """Read a prepared ``fashion_mnist.npz``.

    Args:
        path: NumPy archive with x_train, y_train, x_test and y_test as :class:`FashionImages` has them.

    Raises:
        DataError: The file is broken or has other fields.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in _PARTS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read", looked_for=[f"{path}: {error}"], remedy=_REMEDY) from error
    return _checked(arrays, str(path))


def _checked(arrays: dict[str, Pixels], origin: str) -> FashionImages:
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        images = x.dtype == np.uint8 and x.ndim == 3 and x.shape[1:] == (EDGE, EDGE) and len(x) > 0
        if not images or y.shape != x.shape[:1] or y.dtype != np.uint8 or int(y.max()) > 9:
            found = f"x_{part} {x.dtype} {list(x.shape)}, y_{part} {y.dtype} {list(y.shape)}"
            raise DataError(
                f"{origin} does not hold Fashion-MNIST",
                looked_for=[f"uint8 [N, {EDGE}, {EDGE}] and N labels 0 to 9, found {found}"],
                remedy=_REMEDY,
            )
    return FashionImages(**arrays, origin=origin)


def _fetch(url: str) -> bytes:
    """A gzip file of http, https or file, unpacked; OSError or ValueError when that fails."""
    if not url.startswith(("https://", "http://", "file://")):
        raise ValueError("expected an http, https or file URL")
    _LOG.info("fetching %s", url)
    request = urllib.request.Request(url, headers={"User-Agent": "skerry"})  # noqa: S310 - scheme checked above
    opened = urllib.request.urlopen(request, timeout=NETWORK_SECONDS)  # noqa: S310
    with opened as response, gzip.GzipFile(fileobj=response) as unpacked:
        data: bytes = unpacked.read(FILE_BYTES + 1)
    if len(data) > FILE_BYTES:
        raise ValueError(f"the file is larger than {FILE_BYTES} bytes")
    return data


def _read_idx(data: bytes) -> Pixels:
    """An IDX file of unsigned bytes: two zero bytes, type 8, rank, uint32 sizes (big-endian), values."""
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 3 or len(data) < 4 + 4 * data[3]:
        raise ValueError("not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * len(shape))
    if values.size != int(np.prod(shape, dtype=object)):
        raise ValueError(f"{values.size} values for shape {list(shape)}")
    return values.reshape(shape)


def _keep(images: FashionImages, path: Path) -> None:
    """Put the images into the cache; a cache that cannot be written costs a later download, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as out:
            temporary = Path(out.name)
            np.savez_compressed(out, **{name: getattr(images, name) for name in _PARTS})
        temporary.replace(path)
    except OSError as error:
        _LOG.warning("Fashion-MNIST cannot be kept in %s: %s", path.parent, error)
