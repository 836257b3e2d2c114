"""One round of training in a site: updates are checked, journalled and added, in this order; memory of one model.

What is added is in the journal, and what the journal has is added when the round is opened again, so that a gateway
that was killed neither loses an update nor counts it twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from skerry_contract.campaign import TrainInstruction
from skerry_contract.tensors import Array
from skerry_gateway.site_journal import RoundFiles
from skerry_gateway.summing import TrainFigures
from skerry_server.federation.aggregation.mean import StreamingMean
from skerry_server.federation.rounds.updates import (
    PLAIN_WIRE,
    Expectation,
    Update,
    UpdateRejectedError,
    open_payload,
    read_update,
)

logger = logging.getLogger(__name__)

State = dict[str, Array]


class SiteRound:
    """Takes the updates of one round; for one thread."""

    def __init__(
        self,
        instruction: TrainInstruction,
        model: Mapping[str, Array],
        files: RoundFiles,
        *,
        personal: tuple[str, ...],
        members: tuple[str, ...],
    ) -> None:
        """Open a round with what its journal has.

        Args:
            instruction: Of the control plane.
            model: That the devices start from.
            files: Of this round and question.
            personal: Shell patterns of parameters that stay on the devices.
            members: Devices that may be counted.
        """
        self._instruction = instruction
        self._model = model
        self._files = files
        self._expected = Expectation(model, (PLAIN_WIRE, instruction.wire), personal)
        self._mean = StreamingMean(model)
        self.figures = TrainFigures()
        for kept in files.updates():
            try:
                if kept.device_id not in members:
                    raise UpdateRejectedError("it does not take part any more")
                state, _ = open_payload(kept.payload, self._expected)
            except UpdateRejectedError as error:
                logger.warning("the journalled update of %s is dropped: %s", kept.device_id, error.reason)
                files.forget(kept.device_id)
                continue
            self._add(kept.device_id, kept.examples, kept.metrics, state)

    @property
    def accepted(self) -> tuple[str, ...]:
        """Devices that count, in the order in which their updates came."""
        return tuple(self.figures.members)

    def take(self, device_id: str, fields: Mapping[str, object]) -> None:
        """Check, journal and add the answer of a device.

        Raises:
            UpdateRejectedError: It does not count, and nothing was changed.
        """
        update: Update = read_update(
            fields,
            device_id=device_id,
            model=self._model,
            wires=self._expected.wires,
            personal=self._expected.personal,
        )
        try:
            self._files.record(update)
        except OSError as error:
            raise UpdateRejectedError(f"it cannot be written down: {error}") from error
        self._add(device_id, update.examples, update.metrics, update.state)

    def _add(self, device_id: str, examples: int, metrics: Mapping[str, float], state: Mapping[str, Array]) -> None:
        # With noise of their own all devices weigh the same: the number of examples would tell what the noise hides.
        self._mean.add(state, 1.0 if self._instruction.noise_std else float(examples))
        self.figures.add(device_id, examples, metrics)

    def mean(self) -> State:
        """The weighted mean of what was added; raises ValueError when nothing was."""
        return self._mean.result()
