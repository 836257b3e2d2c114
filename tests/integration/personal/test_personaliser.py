"""When own parameters are proven, what is written, and what stops it."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest

from integration.personal.conftest import Training
from integration.personal.linear_release import SHIFT, TASK, LinearRelease, install, scores
from skerry_agent.config import AgentLayout
from skerry_agent.files import Disk
from skerry_agent.training.labelled_store import LabelledSample
from skerry_agent.training.personal_forms import FORMS, is_gain
from skerry_agent.training.personaliser import NEW_LABELS, QUIET_S
from skerry_agent.training.split import split_samples
from skerry_contract.v1.personal_pb2 import PersonalForm
from unit.agent_training.linear_graphs import BIAS

OWN = {BIAS: SHIFT}


def form_of(training: Training, layout: AgentLayout, release: LinearRelease) -> PersonalForm | None:
    return training.forms.read(install(layout, release).manifest.bundle_sha256)


def test_it_works_once_and_again_only_when_something_has_changed(layout: AgentLayout, training: Training) -> None:
    install(layout, LinearRelease())
    training.label(200)
    training.kept.keep(TASK, OWN)
    for _ in range(3):
        training.look()
    assert training.opened == 1
    first = form_of(training, layout, LinearRelease())
    assert first is not None
    assert (first.proof.origin in ("campaign", "tuned"), is_gain(first.proof)) == (True, True)
    training.label(NEW_LABELS - 1, seed=11)
    training.look()
    assert training.opened == 1
    training.label(1, seed=12)
    training.look()
    assert training.opened == 2, "many labels have come"
    training.kept.keep(TASK, {BIAS: SHIFT * np.float32(0.9)})
    training.look()
    assert training.opened == 3, "a campaign has left others"
    install(layout, LinearRelease("linear-2", 2), "b")
    training.look()
    assert training.opened == 4, "another release"
    assert training.kept.load(TASK, OWN)[BIAS].tolist() == (SHIFT * np.float32(0.9)).tolist(), "only read"


def test_a_proof_that_says_no_is_written_too(layout: AgentLayout, training: Training) -> None:
    """What may be trained on is labelled all wrong, what is only measured is labelled as the release answers."""
    release = LinearRelease()
    install(layout, release)
    x = np.random.default_rng(5).normal(size=(200, 2, 3)).astype(np.float32)
    y = scores(release.state, x).argmax(axis=1).astype(np.int64)
    held = {row.tobytes() for row in split_samples(x, y).validation_x}
    wrong = [int(label) if row.tobytes() in held else 0 for row, label in zip(x, y, strict=True)]
    training.samples.add_many([LabelledSample(str(i), 0, x[i], wrong[i]) for i in range(200)])
    training.kept.keep(TASK, {BIAS: np.array([9, 0, 0], np.float32)})
    training.look()
    form = form_of(training, layout, release)
    assert form is not None
    assert form.proof.global_accuracy == 1.0
    assert not is_gain(form.proof)
    training.look()
    assert training.opened == 1, "it is not tried again and again"


@pytest.mark.parametrize("case", ["few labels", "probation", "no own parameters", "misfit"])
def test_nothing_is_written_without_what_a_proof_needs(layout: AgentLayout, training: Training, case: str) -> None:
    content = install(layout, LinearRelease(), committed=case != "probation")
    training.label(30 if case == "few labels" else 200)
    if case == "misfit":
        training.kept.keep(TASK, {BIAS: np.zeros(4, np.float32)})
    elif case != "no own parameters":
        training.kept.keep(TASK, OWN)
    training.look()
    training.look()
    assert training.forms.read(content.manifest.bundle_sha256) is None
    assert training.opened == 0


def test_a_campaign_comes_first(layout: AgentLayout, training: Training) -> None:
    content = install(layout, LinearRelease())
    training.label(200)
    training.kept.keep(TASK, OWN)
    training.personaliser.campaign("campaign-1 round 1")
    training.look()
    assert training.opened == 0
    training.personaliser.campaign("")
    training.personaliser.step()
    assert training.opened == 0, "the next round may come at once"
    training.clock.now += QUIET_S
    training.personaliser.step()
    assert training.opened == 1
    assert training.forms.read(content.manifest.bundle_sha256) is not None


def test_work_that_a_campaign_interrupts_is_done_later(
    layout: AgentLayout, make_training: Callable[..., Training]
) -> None:
    content = install(layout, LinearRelease())
    asked = 0

    def pause() -> bool:
        nonlocal asked
        asked += 1
        if asked == 7:
            training.personaliser.campaign("campaign-1 round 1")
        return False

    training = make_training(pause=pause)
    training.label(200)
    training.kept.keep(TASK, OWN)
    training.look()
    assert (asked, training.forms.read(content.manifest.bundle_sha256)) == (7, None)
    training.personaliser.campaign("")
    training.look()
    assert training.forms.read(content.manifest.bundle_sha256) is not None


def test_own_parameters_of_another_shape_are_not_carried_over(layout: AgentLayout, training: Training) -> None:
    """A form of the task is there, of a network that had four classes: the device begins anew, that is, not at all."""
    old = install(layout, LinearRelease()).manifest
    training.label(200)
    training.forms.keep(old, {BIAS: np.zeros(4, np.float32)}, PersonalForm().proof)
    content = install(layout, LinearRelease("linear-2", 2), "b")
    training.look()
    assert training.forms.read(content.manifest.bundle_sha256) is None


class NoRoom(Disk):
    """A disk that is full while ``full``."""

    full = True

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data, offset)


def test_a_full_disk_costs_the_form_and_nothing_else(
    layout: AgentLayout, make_training: Callable[..., Training]
) -> None:
    content = install(layout, LinearRelease())
    disk = NoRoom()
    training = make_training(disk=disk)
    training.label(200)
    training.kept.keep(TASK, OWN)
    training.look()
    assert list(layout.personal_forms.iterdir()) == []
    disk.full = False
    training.look()
    assert training.forms.read(content.manifest.bundle_sha256) is not None


def test_forms_are_bounded_and_the_newest_of_a_task_is_found(layout: AgentLayout, training: Training) -> None:
    manifests = [install(layout, LinearRelease(f"linear-{n}", n)).manifest for n in range(1, FORMS + 3)]
    for manifest in manifests:
        training.forms.keep(manifest, OWN, PersonalForm().proof)
    kept = [manifest for manifest in manifests if training.forms.read(manifest.bundle_sha256) is not None]
    assert kept == manifests[-FORMS:]
    newest = training.forms.newest(TASK)
    assert newest is not None
    assert newest.release_id == manifests[-1].release_id
    assert training.forms.newest("digits") is None
