"""Fitness certificates: tells the control plane, under this device's signature, what it measured of a release.

Whoever measured (the proof of an update, or a start without a kept choice) wrote ``choice.json`` into the slot. The
control process finds it there, signs it with the certified key and puts it into the outbox, once per measurement.
Nothing depends on it: a certificate that cannot be made or kept is tried again at the next look.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.engine.choice import Choices, Measurement, read_choices
from skerry_agent.engine.device_profile import DeviceProfile
from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.files import DISK, Disk
from skerry_agent.identity.certificate import certificate_der
from skerry_agent.identity.identity_files import Identity
from skerry_agent.update.slots import read_pointer, read_slot
from skerry_contract.errors import WireError
from skerry_contract.fitness import FORMS, LATENCY_US, TEXT, read_statement, sign_fitness
from skerry_contract.signing import EnvelopeVerifier
from skerry_contract.v1.fitness_pb2 import FitnessCertificate, FitnessStatement, FormFitness
from skerry_contract.v1.release_pb2 import ReleaseManifest
from skerry_contract.v1.telemetry_pb2 import UplinkMessage

_log = logging.getLogger(__name__)
#: How often the slot is looked at (seconds).
LOOK_S = 5.0


def fitness_statement(
    choices: Choices, manifest: ReleaseManifest, profile: DeviceProfile, *, device_id: str
) -> FitnessStatement:
    """What this device says of a release.

    Args:
        choices: Kept in the slot of the release.
        manifest: Of the release, verified.
        profile: This device.
        device_id: Its name.
    """
    chosen = {(choice.variant, choice.backend, choice.rung) for choice in choices.choices}
    return FitnessStatement(
        device_id=device_id,
        release_id=manifest.release_id,
        task=manifest.task,
        bundle_sha256=manifest.bundle_sha256,
        profile=profile.to_message(),
        measured_unix_ms=choices.measured_unix_ms,
        forms=[_form(m, (m.variant, m.backend, m.rung) in chosen) for m in choices.measurements[:FORMS]],
    )


class FitnessReporter:
    """Reports each measurement of the active release once; owned by the control loop."""

    def __init__(
        self,
        layout: AgentLayout,
        *,
        device_id: str,
        verifier: EnvelopeVerifier,
        identity: Callable[[], Identity],
        profile: Callable[[], DeviceProfile],
        record: Callable[[UplinkMessage], bool],
        disk: Disk = DISK,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read before :meth:`step`.

        Args:
            layout: Data directory.
            device_id: This device.
            verifier: Whose releases are trusted.
            identity: Its certified key: ``IdentityFiles.read``.
            profile: What it is.
            record: Puts a message into the outbox and says whether that worked.
            disk: File system.
            monotonic: Seconds.
        """
        self._layout = layout
        self._device_id = device_id
        self._verifier = verifier
        self._identity = identity
        self._profile = profile
        self._record = record
        self._disk = disk
        self._monotonic = monotonic
        self._mark: Path = layout.root / "link" / "fitness.json"
        self._looked_at = float("-inf")

    def step(self) -> None:
        """Look whether there is something new to say."""
        now = self._monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        try:
            self._look()
        except (ArtifactError, DeviceError, OSError, WireError) as error:
            _log.warning("no fitness certificate now: %s", error)

    def _look(self) -> None:
        pointer = read_pointer(self._layout)
        choices = None if pointer is None else read_choices(self._layout.slots / pointer.slot)
        if pointer is None or choices is None:
            return
        mark = {"bundle_sha256": choices.bundle_sha256, "measured_unix_ms": choices.measured_unix_ms}
        if self._said() == mark:
            return
        content = read_slot(self._layout, pointer.slot, self._verifier)
        if choices.bundle_sha256 != content.manifest.bundle_sha256.hex():
            return
        statement = fitness_statement(choices, content.manifest, self._profile(), device_id=self._device_id)
        if self._record(UplinkMessage(fitness=self._certify(statement))):
            self._disk.make_folder(self._mark.parent)
            self._disk.write_atomically(self._mark, json.dumps(mark).encode())

    def _certify(self, statement: FitnessStatement) -> FitnessCertificate:
        identity = self._identity()
        certificate = sign_fitness(
            statement, key=identity.key, certificate_der=certificate_der(identity.certificate_pem)
        )
        read_statement(certificate)  # one that the control plane would refuse is not worth a place in the outbox
        return certificate

    def _said(self) -> object:
        try:
            return json.loads(self._mark.read_bytes())
        except (OSError, ValueError):
            return None


def _form(measurement: Measurement, chosen: bool) -> FormFitness:
    return FormFitness(
        variant=measurement.variant,
        backend=measurement.backend,
        rung=measurement.rung,
        correct=measurement.correct,
        p50_us=_known(measurement.median_us),
        p99_us=_known(measurement.p99_us),
        worst_difference=_known(measurement.worst),
        size=measurement.size,
        load_us=_known(measurement.load_us),
        chosen=chosen,
        tried=measurement.tried,
        detail="".join(character if character.isprintable() else " " for character in measurement.detail)[:TEXT],
    )


def _known(value: float) -> float:
    """What was measured; 0 for what was not."""
    return min(value, LATENCY_US) if math.isfinite(value) else 0.0
