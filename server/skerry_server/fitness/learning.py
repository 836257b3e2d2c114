"""From certificates of like devices to the forms that the next device of their kind downloads. Pure.

A form is recommended when enough devices of one profile measured it, all of them found it correct, nearly all chose it,
and their latencies agree. One device that found it wrong is enough to recommend nothing for its network: then every
device goes on measuring for itself. A wrong recommendation costs a device one more download: it proves the form by its
golden outputs, and downloads the whole release when that fails.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Limits:
    """When certificates agree.

    Attributes:
        devices: Fewest devices.
        share: Least share of them that chose the form, 0 to 1.
        spread: Largest ratio of the 90th to the 10th percentile of their medians, 1 or more.
    """

    devices: int = 3
    share: float = 0.8
    spread: float = 1.5


LIMITS = Limits()


@dataclass(frozen=True)
class Form:
    """What one device says of one form.

    Attributes:
        variant: Its name.
        rung: Place of its network on the ladder.
        tried: Whether it was loaded at all: the time budget may not have reached it.
        correct: Whether it reproduced its golden outputs.
        p50_us: Median latency; 0 when it was not measured.
        chosen: Whether that device serves it.
    """

    variant: str
    rung: int
    tried: bool
    correct: bool
    p50_us: float
    chosen: bool


@dataclass(frozen=True)
class Learned:
    """What is known of one network on one kind of device.

    Attributes:
        rung: Place of the network on the ladder.
        variant: Form that most devices chose.
        devices: Devices that measured the network.
        share: Share of them that chose the form.
        p50_us: Median over devices of the form's median latency.
        reference_p50_us: The same of float32; 0 when no device measured it.
        spread: Ratio of the 90th to the 10th percentile of the form's medians.
        recommended: Whether the next device may download this form only.
        why: Why not; empty if it may.
    """

    rung: int
    variant: str
    devices: int
    share: float
    p50_us: float
    reference_p50_us: float
    spread: float
    recommended: bool
    why: str


def learn(certificates: Sequence[Sequence[Form]], limits: Limits = LIMITS) -> list[Learned]:
    """What the certificates of like devices about one release say, rung by rung.

    Args:
        certificates: The forms of one device each.
        limits: When they agree.
    """
    rungs: dict[int, list[list[Form]]] = defaultdict(list)
    for forms in certificates:
        by_rung: dict[int, list[Form]] = defaultdict(list)
        for form in forms:
            by_rung[form.rung].append(form)
        for rung, of_rung in by_rung.items():
            rungs[rung].append(of_rung)
    learned = [_learn_rung(rung, devices, limits) for rung, devices in sorted(rungs.items())]
    return [entry for entry in learned if entry is not None]


def _learn_rung(rung: int, devices: Sequence[Sequence[Form]], limits: Limits) -> Learned | None:
    votes: dict[str, list[float]] = defaultdict(list)
    for forms in devices:
        for form in forms:
            if form.chosen and form.correct and form.p50_us > 0:
                votes[form.variant].append(form.p50_us)
    if not votes:
        return None
    variant = min(votes, key=lambda name: (-len(votes[name]), name))
    medians = votes[variant]
    share = len(medians) / len(devices)
    low, high = (float(value) for value in np.percentile(medians, (10, 90)))
    references = [
        form.p50_us
        for forms in devices
        for form in forms
        if form.variant.rpartition("/")[2] == "fp32" and form.p50_us > 0
    ]
    tried = [[form.correct for form in forms if form.variant == variant and form.tried] for forms in devices]
    wrong = sum(bool(verdicts) and not any(verdicts) for verdicts in tried)
    why = _obstacle(len(devices), share, high / low, wrong, variant, limits)
    return Learned(
        rung=rung,
        variant=variant,
        devices=len(devices),
        share=share,
        p50_us=float(np.median(medians)),
        reference_p50_us=float(np.median(references)) if references else 0.0,
        spread=high / low,
        recommended=not why,
        why=why,
    )


def _obstacle(devices: int, share: float, spread: float, wrong: int, variant: str, limits: Limits) -> str:
    if wrong:
        return f"{variant} is not correct on {wrong} of {devices} devices"
    if devices < limits.devices:
        return f"{devices} of {limits.devices} devices have measured"
    if share < limits.share:
        return f"{share:.0%} of the devices chose {variant}, less than {limits.share:.0%}"
    if spread > limits.spread:
        return f"the latencies of {variant} differ by {spread:.2f} times, more than {limits.spread:g}"
    return ""
