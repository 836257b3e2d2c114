"""The activation ranges of a site's devices, merged as they come: what one device told is never written down. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from skerry_contract.calibration import TensorRanges, decode_ranges, encode_ranges, within
from skerry_contract.campaign import CALIBRATION_FACTOR, CalibrateInstruction, CalibrateReply
from skerry_contract.errors import WireError
from skerry_server.federation.rounds.updates import UpdateRejectedError


class SiteRanges:
    """The answers to one question."""

    def __init__(self, instruction: CalibrateInstruction) -> None:
        """Raises WireError for a broken reference."""
        self._reference = decode_ranges(instruction.reference)
        self._parameters_sha256 = hashlib.sha256(instruction.parameters).digest()
        self._maximum_rows = instruction.maximum_rows
        self._merged: TensorRanges | None = None
        #: Devices whose ranges are merged, in the order of arrival.
        self.members: list[str] = []

    def take(self, device_id: str, fields: Mapping[str, object]) -> None:
        """Merge one device's ranges.

        Raises:
            UpdateRejectedError: They are somebody else's, of something else, or far beyond the reference.
        """
        try:
            reply = CalibrateReply.from_fields(fields)
            ranges = decode_ranges(reply.ranges)
            beyond = within(ranges, self._reference, factor=CALIBRATION_FACTOR)
        except WireError as error:
            raise UpdateRejectedError(str(error)) from error
        if reply.device_id != device_id:
            raise UpdateRejectedError(f"device {reply.device_id} answered for {device_id}")
        about = (ranges.graph_sha256, ranges.parameters_sha256)
        if about != (self._reference.graph_sha256, self._parameters_sha256):
            raise UpdateRejectedError("ranges of another network or other parameters")
        if ranges.devices != 1 or ranges.rows > self._maximum_rows:
            raise UpdateRejectedError(f"{ranges.rows} rows of {ranges.devices} devices, from one device")
        if beyond:
            raise UpdateRejectedError(f"the range of {beyond} is beyond {CALIBRATION_FACTOR:g} times the reference")
        self._merged = ranges if self._merged is None else self._merged.merge(ranges)
        self.members.append(device_id)

    def reply(self, gateway_id: str) -> CalibrateReply:
        """The site's answer; ValueError before the first device's."""
        if self._merged is None:
            raise ValueError("nothing to tell")
        return CalibrateReply(device_id=gateway_id, ranges=encode_ranges(self._merged))
