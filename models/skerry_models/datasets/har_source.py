"""Finds the activity windows: a prepared file, the cache, or the public archive.

Order: ``$SKERRY_DATA_DIR/har.npz``; ``<cache>/har.npz`` (what an earlier download was turned into); the archive at
``$SKERRY_HAR_URL`` (default: the UCI repository). The cache is ``$SKERRY_CACHE_DIR``, else ``$XDG_CACHE_HOME/skerry``,
else ``~/.cache/skerry``. Pickles are never loaded; nothing half written stays in the cache.
The data is for research and testing: its own readme forbids commercial use, so it is never shipped.
"""

from __future__ import annotations

import http.client
import logging
import os
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np

from skerry_models.cache import cache_folder, find_prepared
from skerry_models.datasets.har_archive import ArchiveError, read_archive
from skerry_models.datasets.har_windows import WINDOW, HarWindows
from skerry_models.errors import DataError

__all__ = ["UCI_ARCHIVE", "HarWindows", "load_har", "read_har_file"]

_LOG = logging.getLogger(__name__)
#: Public archive of dataset 341 (about 80 MB).
UCI_ARCHIVE = (
    "https://archive.ics.uci.edu/static/public/341/"
    "smartphone+based+recognition+of+human+activities+and+postural+transitions.zip"
)
#: Bound on the download (bytes).
ARCHIVE_BYTES = 512 << 20
#: Longest wait for the server to say something (s).
NETWORK_SECONDS = 30.0
_FILE = "har.npz"
_REMEDY = (
    "set SKERRY_DATA_DIR to a folder that holds har.npz, or SKERRY_HAR_URL to a copy of the UCI archive "
    "(dataset 341, https://doi.org/10.24432/C54G7M), or run once with network access"
)


def load_har() -> HarWindows:
    """Load the windows by the rules of this module.

    Raises:
        DataError: They are nowhere; it lists every place that was tried and what happened there.
    """
    tried: list[str] = []
    found = find_prepared(_FILE, tried)
    if found is not None:
        return read_har_file(found)
    url = os.environ.get("SKERRY_HAR_URL", "") or UCI_ARCHIVE
    with tempfile.TemporaryDirectory(prefix="skerry-har-") as temporary:
        archive = Path(temporary) / "archive.zip"
        try:
            _download(url, archive)
            windows = read_archive(archive)
        except (OSError, http.client.HTTPException, ArchiveError, ValueError) as error:
            tried.append(f"{url}: {error}")
            raise DataError("the human activity data is not there", looked_for=tried, remedy=_REMEDY) from error
    _keep(windows, cache_folder() / _FILE)
    return windows


def read_har_file(path: Path) -> HarWindows:
    """Read a prepared ``har.npz``.

    Args:
        path: NumPy archive with x float32 [N, 128, 9], y, subject, recording, start and split (1 = test), each [N].

    Raises:
        DataError: The file is broken or has other fields.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            x = stored["x"]
            columns = {name: stored[name] for name in ("y", "subject", "recording", "start", "split")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read", looked_for=[f"{path}: {error}"], remedy=_REMEDY) from error
    wrong = [name for name, column in columns.items() if column.shape != x.shape[:1]]
    if x.dtype != np.float32 or x.ndim != 3 or x.shape[1:] != (WINDOW, 9) or wrong:
        found = f"x {x.dtype} {list(x.shape)}, " + ", ".join(f"{n} {list(c.shape)}" for n, c in columns.items())
        raise DataError(
            f"{path} is not a file of activity windows",
            looked_for=[f"x float32 [N, {WINDOW}, 9] and columns of N values, found {found}"],
            remedy=_REMEDY,
        )
    return HarWindows(
        x=x,
        y=columns["y"].astype(np.uint8),
        subject=columns["subject"].astype(np.uint8),
        recording=columns["recording"].astype(np.uint8),
        start=columns["start"].astype(np.int32),
        test=columns["split"] == 1,
        origin=str(path),
    )


def _download(url: str, target: Path) -> None:
    """Fetch ``url`` (http, https or file) into ``target``; OSError or ValueError when that fails."""
    if not url.startswith(("https://", "http://", "file://")):
        raise ValueError("expected an http, https or file URL")
    _LOG.info("fetching the human activity data from %s", url)
    request = urllib.request.Request(url, headers={"User-Agent": "skerry"})  # noqa: S310 - scheme checked above
    received = 0
    with urllib.request.urlopen(request, timeout=NETWORK_SECONDS) as response, target.open("wb") as out:  # noqa: S310
        while block := response.read(1 << 20):
            received += len(block)
            if received > ARCHIVE_BYTES:
                raise ValueError(f"the archive is larger than {ARCHIVE_BYTES} bytes")
            out.write(block)


def _keep(windows: HarWindows, path: Path) -> None:
    """Put the windows into the cache; a cache that cannot be written costs a later download, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as out:
            temporary = Path(out.name)
            np.savez_compressed(
                out,
                x=windows.x,
                y=windows.y,
                subject=windows.subject,
                recording=windows.recording,
                start=windows.start,
                split=windows.test.astype(np.uint8),
            )
        temporary.replace(path)
    except OSError as error:
        _LOG.warning("the activity data cannot be kept in %s: %s", path.parent, error)
