"""The drift edges of a release, from its bundle; parsed once per digest and kept."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from skerry_contract.errors import WireError
from skerry_contract.histogram import decode_counts, edges_digest, parse_edges
from skerry_contract.v1.telemetry_pb2 import HistogramEdges
from skerry_server.monitoring.detector import Array, normal_scores

#: Parsed edges that are kept.
_KEPT = 32


class BundleFolders(Protocol):
    """The part of the artifact store that is needed here."""

    def bundle_folder(self, bundle_sha256_hex: str, /) -> Path:
        """Folder that a bundle lies in."""


@dataclass(frozen=True)
class ReleaseEdges:
    """Edges of a release, ready to judge by.

    Attributes:
        sha256: Digest of drift_edges.pb, hexadecimal.
        message: The parsed file.
        names: Feature names, in order.
        scores: Per feature the normal score of each cell, float64 [cells].
    """

    sha256: str
    message: HistogramEdges
    names: tuple[str, ...]
    scores: tuple[Array, ...]


def read_edges(data: bytes) -> ReleaseEdges:
    """Parse drift_edges.pb; raises WireError."""
    message = parse_edges(data)
    references = [decode_counts(feature.reference, cells=len(feature.edges) + 1) for feature in message.features]
    return ReleaseEdges(
        sha256=edges_digest(data).hex(),
        message=message,
        names=tuple(feature.name for feature in message.features),
        scores=tuple(normal_scores(counts.astype(float)) for counts in references),
    )


class EdgeCache:
    """Edges by bundle, least recently used ones dropped. For one thread."""

    def __init__(self, folders: BundleFolders) -> None:
        """Read from ``folders``."""
        self._folders = folders
        self._kept: OrderedDict[str, ReleaseEdges] = OrderedDict()

    def get(self, bundle_sha256: str) -> ReleaseEdges:
        """Edges of a bundle.

        Raises:
            WireError: Its drift_edges.pb is missing or broken.
        """
        if bundle_sha256 not in self._kept:
            path = self._folders.bundle_folder(bundle_sha256) / "drift_edges.pb"
            try:
                data = path.read_bytes()
            except FileNotFoundError as error:
                raise WireError("drift_edges.pb", expected="a file of the bundle", got="nothing") from error
            self._kept[bundle_sha256] = read_edges(data)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(bundle_sha256)
        return self._kept[bundle_sha256]
