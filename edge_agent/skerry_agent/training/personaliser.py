"""Keeps the proof of the device's own parameters up to date: for the release that answers, on the samples of today.

It looks once in a while, on a thread of its own, and works only when something has changed: another release is
committed, a campaign has left other parameters, or many labels have come. A campaign comes first: the work is given up
when one asks, and done later. What campaigns keep (:mod:`skerry_agent.training.personal`) is only read here; what is
fitted for a release lies in that release's form, so neither can spoil the other.

Invariants: nothing is written but the form of the committed release; a form is written with its proof, also when the
proof says no, which makes serving give it up; without enough labels nothing is written at all.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from skerry_agent.config import AgentLayout
from skerry_agent.engine.slot_files import read_verified
from skerry_agent.errors import AgentError, ArtifactError
from skerry_agent.training.bundle import TrainingBundle
from skerry_agent.training.personal import PersonalParameters, personal_names
from skerry_agent.training.personal_forms import PROOF_EXAMPLES, PersonalForms, is_gain
from skerry_agent.training.personal_proof import CAMPAIGN, CARRIED, Comparison, compare
from skerry_agent.training.split import SplitSamples, split_samples
from skerry_agent.training.trainer import Array, Inputs, Labels, ShouldPause, State, TrainingInterruptedError
from skerry_agent.update.slots import SlotContent, read_pointer, read_slot
from skerry_contract.errors import WireError
from skerry_contract.signing import EnvelopeVerifier
from skerry_contract.tensors import decode_bundle
from skerry_contract.v1.personal_pb2 import PersonalForm, PersonalProof

logger = logging.getLogger(__name__)

R = TypeVar("R")

PARAMETERS = "parameters.pb"
#: Time between two looks, and longest time for one proof (seconds).
LOOK_S = 5.0
PROOF_S = 600.0
#: After work that failed, the next try comes this much later (seconds).
RETRY_S = 60.0
#: How long no campaign must have asked: between two rounds there is no time for this (seconds).
QUIET_S = 20.0
#: New labels after which a proof is measured anew.
NEW_LABELS = 50


class Runner(Protocol):
    """Runs an action on the thread that training has, and waits for it."""

    def __call__(self, action: Callable[[], R], /) -> R:
        """Its result, or what it raises."""
        ...


class Samples(Protocol):
    """The labelled store."""

    @property
    def store_id(self) -> str:
        """Identity of the file."""
        ...

    def newest(self) -> int:
        """Position of the newest sample; 0 if there is none."""
        ...

    def load(self) -> tuple[Inputs, Labels]:
        """float32 [N, ...] and int64 [N]."""
        ...


class Bundles(Protocol):
    """Where proven trainers come from."""

    def open(self, train_step_sha256: str) -> TrainingBundle:
        """Raises ArtifactError."""
        ...


@dataclass(frozen=True)
class _Start:
    """What a proof begins with.

    Attributes:
        own: The device's values; empty if it has none yet.
        names: Which parameters are its own; empty: there is nothing to prove.
        origin: Where the values come from.
        campaign_sha256: Digest of what campaigns keep; empty if they keep nothing.
    """

    own: State
    names: frozenset[str]
    origin: str
    campaign_sha256: bytes


class Personaliser:
    """See the module; :meth:`step` is called by one thread, :meth:`campaign` by any."""

    def __init__(
        self,
        layout: AgentLayout,
        verifier: EnvelopeVerifier,
        *,
        samples: Samples,
        kept: PersonalParameters,
        forms: PersonalForms,
        open_bundles: Callable[[], Bundles],
        pause: Callable[[float], ShouldPause],
        patterns: Sequence[str] = (),
        run: Runner | None = None,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read yet.

        Args:
            layout: The data directory.
            verifier: Whose signatures are trusted.
            samples: Labelled samples.
            kept: What campaigns keep on the device; only read.
            forms: Where forms are written.
            open_bundles: Gives trainers for one proof; they are let go after it.
            pause: Gives the question that training asks before every step, with a deadline (monotonic seconds).
            patterns: Parameters that the device fits by itself when campaigns keep nothing.
            run: Does the computing; without it, here.
            wall_ms: Unix time, for the proof.
            monotonic: Seconds.
        """
        self._layout = layout
        self._verifier = verifier
        self._samples = samples
        self._kept = kept
        self._forms = forms
        self._open_bundles = open_bundles
        self._pause = pause
        self._patterns = tuple(patterns)
        self._run: Runner = run if run is not None else _here
        self._wall_ms = wall_ms
        self._monotonic = monotonic
        self._campaign = threading.Event()
        self._quiet_from = float("-inf")
        self._not_before = float("-inf")
        #: (bundle, store, newest sample) that were too few labels.
        self._too_few: tuple[bytes, str, int] | None = None
        self._told = ""

    def campaign(self, detail: str) -> None:
        """A campaign is worked on; empty: none is any more."""
        if detail:
            self._campaign.set()
        else:
            self._quiet_from = self._monotonic() + QUIET_S
            self._campaign.clear()

    def loop(self, stop: threading.Event) -> None:
        """Look until ``stop`` is set."""
        while not stop.wait(LOOK_S):
            self.step()

    def step(self) -> None:
        """Look once, and prove what has to be proven; never raises for what is wrong on the device."""
        if self._campaign.is_set() or self._monotonic() < max(self._not_before, self._quiet_from):
            return
        try:
            self._look()
            self._told = ""
        except TrainingInterruptedError as error:
            self._not_before = self._monotonic() + LOOK_S
            logger.info("the own parameters are proven later: %s", error.reason)
        except (AgentError, WireError, OSError) as error:
            self._not_before = self._monotonic() + RETRY_S
            if str(error) != self._told:
                logger.warning("the own parameters cannot be proven now: %s", error)
            self._told = str(error)

    def _look(self) -> None:
        content = self._committed()
        if content is None or not content.manifest.train_step_sha256:
            return
        form = self._forms.read(content.manifest.bundle_sha256)
        store_id, position = self._samples.store_id, self._samples.newest()
        at = (content.manifest.bundle_sha256, store_id, position)
        if at == self._too_few or not self._is_due(content, form, store_id, position):
            return
        release = decode_bundle(read_verified(content, PARAMETERS))
        start = self._start(content, release, form)
        if not start.names:
            return
        x, y = self._samples.load()
        samples = split_samples(x, y)
        if len(samples.validation_y) < PROOF_EXAMPLES:
            self._too_few = at
            return
        comparison = self._compare(content, release, start, samples)
        proof = PersonalProof(
            examples=comparison.personal.examples,
            global_accuracy=comparison.released.accuracy,
            personal_accuracy=comparison.personal.accuracy,
            global_loss=comparison.released.loss,
            personal_loss=comparison.personal.loss,
            measured_unix_ms=self._wall_ms(),
            origin=comparison.origin,
            campaign_sha256=start.campaign_sha256,
            store_id=store_id,
            position=position,
        )
        self._forms.keep(content.manifest, comparison.own, proof)
        logger.info(
            "release %s with own parameters (%s): %.3f right against %.3f on %d samples: %s",
            content.manifest.release_id,
            comparison.origin,
            proof.personal_accuracy,
            proof.global_accuracy,
            proof.examples,
            "they may answer" if is_gain(proof) else "it answers as it was signed",
        )

    def _committed(self) -> SlotContent | None:
        """The slot that answers; None on probation: it may go back in a minute."""
        pointer = read_pointer(self._layout)
        if pointer is None or not pointer.committed:
            return None
        return read_slot(self._layout, pointer.slot, self._verifier)

    def _is_due(self, content: SlotContent, form: PersonalForm | None, store_id: str, position: int) -> bool:
        """Whether there is something to prove that is not proven; cheap, for it is asked at every look."""
        task = content.manifest.task
        some = form is not None or self._patterns or self._kept.digest(task) or self._forms.newest(task) is not None
        return bool(some) and position > 0 and (form is None or self._changed(form, task, store_id, position))

    def _changed(self, form: PersonalForm, task: str, store_id: str, position: int) -> bool:
        proof = form.proof
        new_labels = position - proof.position if store_id == proof.store_id else position
        return proof.campaign_sha256 != self._kept.digest(task) or new_labels >= NEW_LABELS

    def _start(self, content: SlotContent, release: Mapping[str, Array], form: PersonalForm | None) -> _Start:
        """What campaigns keep; else what answered under the last release; else what the configuration asks for."""
        task = content.manifest.task
        digest = self._kept.digest(task)
        kept = self._kept.load(task, release)
        if kept:
            return _Start(kept, frozenset(kept), CAMPAIGN, digest)
        last = form or self._forms.newest(task)
        if last is not None:
            own = _fitting(decode_bundle(last.parameters), release)
            if own:
                return _Start(own, frozenset(own), CARRIED, digest)
        return _Start({}, personal_names(release, self._patterns), CARRIED, digest)

    def _compare(
        self, content: SlotContent, release: Mapping[str, Array], start: _Start, samples: SplitSamples
    ) -> Comparison:
        bundle = self._open_bundles().open(content.manifest.train_step_sha256.hex())
        if bundle.task != content.manifest.task:
            raise ArtifactError(content.manifest.release_id, "its train step belongs to another task")
        bundle.trainer.check_state(release)
        wait = self._pause(self._monotonic() + PROOF_S)

        def should_pause() -> bool:
            if self._campaign.is_set():
                raise TrainingInterruptedError("a campaign asks")
            return wait()

        seed = int.from_bytes(hashlib.blake2b(content.manifest.bundle_sha256, digest_size=7).digest(), "little")
        return self._run(
            lambda: compare(
                bundle.trainer, release, start.own, start.names, samples, should_pause, origin=start.origin, seed=seed
            )
        )


def _fitting(own: Mapping[str, Array], release: Mapping[str, Array]) -> State:
    """All of ``own``, or nothing if one of them is not like the release's: a head is carried over whole."""

    def like(name: str, array: Array) -> bool:
        return name in release and (release[name].shape, release[name].dtype) == (array.shape, array.dtype)

    return dict(own) if all(like(name, array) for name, array in own.items()) else {}


def _here(action: Callable[[], R], /) -> R:
    return action()
