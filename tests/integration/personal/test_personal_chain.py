"""Own parameters from a campaign to the door, over a new release and back: real files, graphs, training and serving."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from integration.personal.conftest import Sink, Training
from integration.personal.linear_release import GRAPHS, TASK, LinearRelease, install, own_people, scores
from skerry_agent import Engine
from skerry_agent.config import AgentLayout
from skerry_agent.training.bundle import TrainingBundle
from skerry_agent.training.local_round import Question, train_locally
from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.split import split_samples
from skerry_agent.update.slots import Pointer, write_pointer
from skerry_contract.campaign import TrainInstruction
from skerry_contract.histogram import decode_counts
from skerry_contract.tensors import encode_bundle
from unit.agent_training.linear_graphs import BIAS, WEIGHT

X, Y = own_people(600, seed=99)


def accuracy(engine: Engine) -> float:
    """On samples of this device that nobody has trained on."""
    return float(np.mean([engine.infer(X[i : i + 50]).labels == Y[i : i + 50] for i in range(0, 600, 50)]))


def campaign_round(training: Training, release: LinearRelease) -> None:
    """What a campaign with a personal bias leaves on the device, by the code that does it in the training process."""
    trainer = OnnxTrainer(GRAPHS.step, GRAPHS.spec, GRAPHS.evaluate)
    instruction = TrainInstruction(
        campaign_id="campaign-1", round=1, task=TASK, train_step_sha256="", local_epochs=3, batch_size=16,
        learning_rate=0.05, proximal_mu=0.0, minimum_samples=2, deadline_ms=60_000, seed=1,
        parameters=encode_bundle(release.state), personal="*.bias",
    )  # fmt: skip
    samples = split_samples(*training.samples.load())
    bundle = TrainingBundle(trainer, TASK, "", release.release_id)
    question = Question(instruction, release.state, {}, 1)
    update = train_locally(bundle, question, samples, training.kept, lambda: False)
    assert list(update.state) == [WEIGHT]
    assert update.personal_accuracy > update.received.accuracy


def test_a_head_is_trained_served_carried_over_proven_again_and_rolled_back(
    layout: AgentLayout, training: Training, open_engine: Callable[..., Engine], sink: Sink
) -> None:
    first, second = LinearRelease(), LinearRelease("linear-2", 2)
    install(layout, first)
    training.label(300)
    with open_engine(follow=False) as engine:
        assert (engine.status().variant, engine.status().personal.state) == ("fp32", "none")
        everybodys = accuracy(engine)
        campaign_round(training, first)
        training.look()
        engine.activate("a")
        status = engine.status()
        assert (status.variant, status.personal.state, status.personal.examples >= 40) == ("personal", "answers", True)
        assert engine.infer(X[:1]).variant == "personal"
        own = accuracy(engine)
        assert own > everybodys + 0.1, (own, everybodys)
        assert abs(status.personal.personal_accuracy - own) < 0.12, "the proof says what the device will see"
        document = json.loads(layout.personal_file.read_bytes())
        assert (document["state"], document["release_id"]) == ("answers", "linear-1")

        content = install(layout, second, "b", committed=False)
        engine.activate("b")
        assert engine.status().personal.state == "none"
        training.look()
        assert training.forms.read(content.manifest.bundle_sha256) is None, "nothing on probation"
        write_pointer(layout, Pointer("b", "linear-2", committed=True, previous_slot="a", previous_release="linear-1"))
        engine.activate("b")
        assert engine.status().variant == "fp32", "it has to prove itself under the new release"
        training.look()
        engine.activate("b")
        assert (engine.status().release_id, engine.status().variant) == ("linear-2", "personal")
        assert accuracy(engine) > everybodys + 0.1

        write_pointer(layout, Pointer("a", "linear-1", committed=True))
        engine.activate("a")
        assert (engine.status().release_id, engine.status().variant) == ("linear-1", "personal")
        assert accuracy(engine) == own, "the form of the release before, as it was"
    predicted = [int(decode_counts(w.predictions, cells=3, field="predictions").sum()) for w in sink.windows]
    assert {w.release_id for w, count in zip(sink.windows, predicted, strict=True) if not count} == {
        "linear-1",
        "linear-2",
    }, "what the own parameters predict is no drift of the release's predictions"
    for window, count in zip(sink.windows, predicted, strict=True):
        assert count in (0, window.rows)
        features = decode_counts(window.features[0], cells=10, field="features")
        assert features.sum() == window.rows, "the drift features are everybody's"
    assert sum(predicted) == 600


def test_the_engine_takes_a_form_up_by_itself_and_gives_it_up_when_the_proof_says_no(
    layout: AgentLayout, training: Training, open_engine: Callable[..., Engine], wait_until: Callable[..., None]
) -> None:
    release = LinearRelease()
    content = install(layout, release)
    training.label(300)
    with open_engine() as engine:
        campaign_round(training, release)
        training.look()
        wait_until(lambda: engine.status().variant == "personal", what="the form answers", seconds=10)
        form = training.forms.read(content.manifest.bundle_sha256)
        assert form is not None
        form.proof.personal_accuracy = 0.0
        training.forms.keep(content.manifest, {BIAS: np.ones(3, np.float32)}, form.proof)
        wait_until(lambda: engine.status().variant == "fp32", what="the release answers", seconds=10)
        status = engine.status().personal
        assert (status.state, "not better than the release" in status.detail) == ("refused", True)
        np.testing.assert_allclose(engine.infer(X[:3]).scores, scores(release.state, X[:3]), atol=1e-5)


def test_a_device_fits_parameters_by_itself_only_where_its_owner_asks(
    layout: AgentLayout, make_training: Callable[..., Training], open_engine: Callable[..., Engine]
) -> None:
    content = install(layout, LinearRelease())
    idle = make_training()
    idle.label(300)
    idle.look()
    assert (idle.opened, idle.forms.read(content.manifest.bundle_sha256)) == (0, None)
    asked = make_training("*.bias")
    asked.look()
    form = asked.forms.read(content.manifest.bundle_sha256)
    assert form is not None
    assert form.proof.origin == "release-tuned"
    with open_engine(follow=False) as engine:
        assert engine.status().variant == "personal"
        assert accuracy(engine) > 0.85


def test_a_device_whose_owner_forbids_it_answers_with_the_release(
    layout: AgentLayout, make_training: Callable[..., Training], open_engine: Callable[..., Engine]
) -> None:
    install(layout, LinearRelease())
    training = make_training("*.bias")
    training.label(300)
    training.look()
    document = json.loads(layout.config.read_text())
    layout.config.write_text(json.dumps({**document, "serve_personal": False}))
    with open_engine(follow=False) as engine:
        assert (engine.status().variant, engine.status().personal.state) == ("fp32", "off")
