"""Federated calibration: the devices tell which values the activations of the result take on their rows. No torch.

Each answer is a smallest and a largest value per activation, and is merged into the others as it arrives: what a single
device told is never written down. Merging is associative and commutative, so neither the order of the answers nor
gateways in between can matter. A range has no median, so each contribution is held against what the control plane
measures on its own rows with the same graph.

Whatever goes wrong is no failure of the campaign: its result is then calibrated centrally, and says why.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from skerry_contract.calibration import TensorRanges, decode_ranges, encode_ranges, within
from skerry_contract.campaign import CALIBRATE, CALIBRATION_FACTOR, CalibrateInstruction, CalibrateReply
from skerry_contract.errors import WireError
from skerry_contract.tensors import encode_bundle
from skerry_server.federation.exchange import Broadcast, Exchange
from skerry_server.federation.rounds.calibration_source import MAXIMUM_ROWS, CalibrationOutcome, CalibrationSource
from skerry_server.federation.rounds.journal import CampaignJournal, RoundRecord
from skerry_server.federation.rounds.measuring import EVALUATION_DEADLINE_S
from skerry_server.federation.rounds.round_loop import Resolve, RoundCollector, RoundFailedError, RoundRules
from skerry_server.federation.rounds.updates import UpdateRejectedError
from skerry_server.federation.rounds.workshop import CampaignPlan
from skerry_server.files import write_atomically

logger = logging.getLogger(__name__)

#: Fewest devices behind ranges: those of one device alone would stand in every copy of the release.
LEAST_DEVICES: Final = 2


class DeviceCalibrator:
    """Asks the devices of a campaign; one thread."""

    def __init__(
        self,
        plan: CampaignPlan,
        journal: CampaignJournal,
        exchange: Exchange,
        resolve: Resolve,
        source: CalibrationSource,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """See :class:`~.round_loop.RoundCollector` for the last five but ``source``."""
        self._plan = plan
        self._journal = journal
        self._source = source
        self._collector = RoundCollector(exchange, resolve, clock=clock, sleep=sleep, check=check)

    def calibrate(self, record: RoundRecord) -> CalibrationOutcome:
        """Ranges of the model of a round; what an earlier attempt has merged already is not asked for again.

        Raises:
            ExchangeLostError: The run behind the exchange is gone.
        """
        if self._source.reference is None:
            return CalibrationOutcome("central", reason="the base release has no calibrate.onnx")
        kept = self._kept(record)
        if kept is not None:
            return kept
        state = self._journal.load(record.parameters_sha256)
        try:
            merged = self._ask(record, encode_bundle(state), self._source.reference(state))
        except (RoundFailedError, WireError) as error:
            logger.warning("the result is calibrated centrally: %s", error)
            return CalibrationOutcome("central", reason=str(error)[:500])
        if merged.devices < LEAST_DEVICES:
            reason = f"{merged.devices} device answered, and its ranges alone would stand in the release"
            return CalibrationOutcome("central", reason=reason)
        sha256 = self._source.put(encode_ranges(merged))
        outcome = CalibrationOutcome("devices", merged.devices, merged.rows, sha256)
        document = {"parameters_sha256": record.parameters_sha256, "outcome": outcome.as_dict()}
        write_atomically(self._source.kept, json.dumps(document).encode())
        return outcome

    def _kept(self, record: RoundRecord) -> CalibrationOutcome | None:
        try:
            document = json.loads(self._source.kept.read_bytes())
            if document["parameters_sha256"] == record.parameters_sha256:
                return CalibrationOutcome(**document["outcome"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be used and the devices are asked again: %s", self._source.kept.name, error)
        return None

    def _ask(self, record: RoundRecord, parameters: bytes, reference: TensorRanges) -> TensorRanges:
        merged: TensorRanges | None = None

        def accept(device_id: str, fields: Mapping[str, object]) -> None:
            nonlocal merged
            ranges = self._read(device_id, fields, reference)
            merged = ranges if merged is None else merged.merge(ranges)

        settings, plan = self._plan.settings, self._plan
        deadline_s = min(EVALUATION_DEADLINE_S, settings.round_deadline_ms / 1000)
        instruction = CalibrateInstruction(
            campaign_id=plan.campaign_id,
            round=record.number,
            task=plan.task,
            train_step_sha256=plan.train_step_sha256,
            graph_sha256=reference.graph_sha256.hex(),
            minimum_samples=settings.minimum_samples,
            maximum_rows=MAXIMUM_ROWS,
            deadline_ms=int(deadline_s * 1000),
            parameters=parameters,
            reference=encode_ranges(reference),
        )
        self._collector.collect(
            Broadcast(CALIBRATE, "calibrate", instruction.to_fields(), deadline_s),
            RoundRules(
                quorum=settings.quorum_count(len(plan.participants)),
                deadline_s=deadline_s,
                grace_factor=settings.grace_factor,
            ),
            accept,
        )
        if merged is None:
            raise RoundFailedError(0, 1, {})
        return merged

    def _read(self, device_id: str, fields: Mapping[str, object], reference: TensorRanges) -> TensorRanges:
        """A contribution that counts; raises UpdateRejectedError."""
        most = len(self._plan.gateways.get(device_id, (device_id,)))
        try:
            reply = CalibrateReply.from_fields(fields)
            ranges = decode_ranges(reply.ranges)
            beyond = within(ranges, reference, factor=CALIBRATION_FACTOR)
        except WireError as error:
            raise UpdateRejectedError(str(error)) from error
        if reply.device_id != device_id:
            raise UpdateRejectedError(f"device {reply.device_id} answered for {device_id}")
        for name in ("graph_sha256", "parameters_sha256"):
            if getattr(ranges, name) != getattr(reference, name):
                raise UpdateRejectedError(f"{name}: ranges of another network or other parameters")
        if ranges.devices > most or ranges.rows > MAXIMUM_ROWS * ranges.devices:
            raise UpdateRejectedError(f"{ranges.rows} rows of {ranges.devices} devices, of at most {most}")
        if beyond:
            raise UpdateRejectedError(f"the range of {beyond} is beyond {CALIBRATION_FACTOR:g} times the reference")
        return ranges
