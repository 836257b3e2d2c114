"""Which activation ranges a candidate is quantised with: those that a campaign's devices told, or the cloud's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from skerry_contract.calibration import TensorRanges, decode_ranges
from skerry_contract.errors import WireError
from skerry_models.errors import BundleError
from skerry_server.errors import NotFoundError, PlatformError
from skerry_server.releases.artifacts import ArtifactStore

if TYPE_CHECKING:
    from skerry_models.bundle import BundleReport

logger = logging.getLogger(__name__)

#: Key of a candidate job's payload: the outcome of a campaign's calibration
#: (:class:`skerry_server.federation.rounds.calibrating.CalibrationOutcome`).
PAYLOAD = "calibration"
#: Entry of lineage.json and the model card: why the devices' ranges were wanted and not used.
NOTE = "calibrated_centrally_because"
_GRAPH = "calibrate.onnx"

#: Builds the bundle with given ranges (None: central ones) and further entries of its lineage.
Build = Callable[[TensorRanges | None, Mapping[str, object]], "BundleReport"]


def build_calibrated(payload: Mapping[str, Any], artifacts: ArtifactStore, build: Build) -> BundleReport:
    """Build with the ranges that the payload names; centrally, with a note, where there are none or they do not fit.

    A network whose exported graph is another one than that of the base release has other names for its activations.
    """
    told = payload.get(PAYLOAD)
    if not isinstance(told, Mapping):
        return build(None, {})
    sha256, reason = str(told.get("ranges_sha256", "")), str(told.get("reason", ""))
    if sha256:
        try:
            return build(decode_ranges(artifacts.get_bytes(sha256)), {})
        except (NotFoundError, PlatformError, WireError) as error:
            reason = f"the devices' ranges cannot be read: {error}"
        except BundleError as error:
            if error.file != _GRAPH:
                raise
            reason = error.reason
        logger.warning("the devices' ranges are not used: %s", reason)
    return build(None, {NOTE: reason} if reason else {})
