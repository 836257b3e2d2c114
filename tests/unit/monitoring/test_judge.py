"""The drift rule on whole looks: simulated quiet and drifting fleets, and each part of the rule on its own."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from skerry_server.monitoring import detector, judge
from skerry_server.monitoring.detector import Array
from skerry_server.monitoring.judge import DriftSettings, EarlierLook, Evidence, PeerLook
from skerry_server.monitoring.windows import WindowCounts

EDGES = stats.norm.ppf(np.linspace(0, 1, 31)[1:-1])
NAMES = ("a", "b", "c")
SCORES = [detector.normal_scores(np.full(30, 100.0))] * 3
SETTINGS = DriftSettings()


def histogram(values: Array) -> Array:
    return np.bincount(np.searchsorted(EDGES, values), minlength=30).astype(float)


def window(
    rng: np.random.Generator, rows: int, *, center: Any = 0.0, shift: float = 0.0, classes: Any = (0.5, 0.5)
) -> WindowCounts:
    """Feature "a" is shifted; every feature lies around the device's own center."""
    centers = np.broadcast_to(np.asarray(center, dtype=float), (3,))
    return WindowCounts(
        rows=rows,
        missing=0,
        out_of_range=0,
        schema_errors=0,
        features=tuple(
            histogram(rng.normal(middle + (shift if index == 0 else 0), 1, rows))
            for index, middle in enumerate(centers)
        ),
        predictions=rng.multinomial(rows, classes).astype(float),
    )


class Fleet:
    """Devices with centers of their own that are judged look after look."""

    def __init__(self, rng: np.random.Generator, devices: int, *, rows: int, baseline: int) -> None:
        self.rng, self.rows = rng, rows
        self.centers = rng.normal(0, 0.3, (devices, 3))
        self.baselines = [
            [window(rng, baseline // 2, center=center), window(rng, baseline // 2, center=center)]
            for center in self.centers
        ]
        self.looks: list[list[EarlierLook]] = [[] for _ in range(devices)]
        self.peers: dict[str, PeerLook] = {}

    def look(self, shifts: dict[int, float]) -> list[dict[str, Any]]:
        verdicts = []
        for number, center in enumerate(self.centers):
            current = window(self.rng, self.rows, center=center, shift=shifts.get(number, 0.0))
            verdict = judge.judge(
                Evidence(
                    names=NAMES,
                    scores=SCORES,
                    baseline=self.baselines[number],
                    look=current,
                    earlier=self.looks[number][-20:],
                    peers={name: peer for name, peer in self.peers.items() if name != str(number)},
                ),
                SETTINGS,
            )
            entries = verdict["features"]
            self.looks[number].append(EarlierLook(current, frozenset(n for n in NAMES if entries[n]["flagged"])))
            self.peers[str(number)] = PeerLook(
                {name: entries[name]["p"] for name in NAMES}, {name: entries[name]["change"] for name in NAMES}
            )
            verdicts.append(verdict)
        return verdicts


def test_quiet_fleet_of_devices_that_differ_raises_nothing() -> None:
    fleet = Fleet(np.random.default_rng(11), 24, rows=250, baseline=500)
    statuses = [verdict["status"] for _ in range(8) for verdict in fleet.look({})]
    assert statuses.count("drift") == 0
    assert statuses.count("suspect") <= 4  # of 192


def test_drift_of_some_devices_is_seen_on_them_and_on_no_other() -> None:
    fleet = Fleet(np.random.default_rng(12), 10, rows=300, baseline=600)
    for _ in range(2):
        fleet.look({})
    shifts = dict.fromkeys(range(4), 0.6)
    seen: set[int] = set()
    for number in range(4):
        verdicts = fleet.look(shifts)
        seen |= {index for index, verdict in enumerate(verdicts) if verdict["status"] == "drift"}
        if number == 1:
            assert seen == {0, 1, 2, 3}
    assert seen == {0, 1, 2, 3}


def test_small_drift_of_everybody_is_a_matter_of_the_fleet() -> None:
    fleet = Fleet(np.random.default_rng(13), 30, rows=250, baseline=500)
    fleet.look({})
    for _ in range(3):
        verdicts = fleet.look(dict.fromkeys(range(30), 0.2))
    moved = [verdict for verdict in verdicts if verdict["fleet"]["moved"] == ["a"]]
    assert len(moved) > 15
    assert all(verdict["features"]["a"]["rule"] in ("fleet", "local") for verdict in moved)
    assert all(verdict["severity"] in ("warn", "act", "critical") for verdict in moved)
    assert sum(verdict["status"] == "drift" for verdict in verdicts) > 10


def test_fleet_rule_needs_its_devices() -> None:
    fleet = Fleet(np.random.default_rng(14), 12, rows=250, baseline=500)
    for _ in range(2):
        verdicts = fleet.look(dict.fromkeys(range(12), 0.2))
    assert all(verdict["fleet"] == {"devices": 12, "p": {}, "moved": []} for verdict in verdicts)


@pytest.fixture
def drifting() -> Evidence:
    rng = np.random.default_rng(15)
    return Evidence(
        names=NAMES,
        scores=SCORES,
        baseline=[window(rng, 300), window(rng, 300)],
        look=window(rng, 300, shift=0.6),
    )


A, B, NONE = frozenset("a"), frozenset("b"), frozenset[str]()


def earlier(*flagged: frozenset[str], shift: float, seed: int = 20) -> list[EarlierLook]:
    rng = np.random.default_rng(seed)
    return [EarlierLook(window(rng, 300, shift=shift), names) for names in flagged]


@pytest.mark.parametrize(
    ("before", "status"),
    [
        ((), "suspect"),
        ((NONE, NONE), "suspect"),
        ((A,), "drift"),
        ((A, NONE), "drift"),
        ((A, NONE, NONE), "suspect"),
        ((A, A), "drift"),
        ((B, B), "suspect"),
    ],
)
def test_two_of_the_last_three_looks_decide_by_the_same_feature(
    drifting: Evidence, before: tuple[frozenset[str], ...], status: str
) -> None:
    no_detector = dataclasses.replace(SETTINGS, e_threshold=1e300)
    verdict = judge.judge(dataclasses.replace(drifting, earlier=earlier(*before, shift=0.6)), no_detector)
    assert verdict["flagged"]
    assert verdict["status"] == status
    assert verdict["confirmed"] == (["a"] if status == "drift" else [])


def test_votes_without_common_evidence_are_bad_luck(drifting: Evidence) -> None:
    """The looks before were flagged, but taken together with them the change is not beyond doubt."""
    weak = dataclasses.replace(
        drifting, look=window(np.random.default_rng(24), 300, shift=0.5), earlier=earlier(A, A, shift=0.0)
    )
    verdict = judge.judge(weak, dataclasses.replace(SETTINGS, e_threshold=1e300))
    assert verdict["flagged"]
    assert (verdict["status"], verdict["confirmed"]) == ("suspect", [])


def test_flagged_looks_of_the_past_alone_are_no_drift() -> None:
    rng = np.random.default_rng(16)
    quiet = Evidence(
        names=NAMES,
        scores=SCORES,
        baseline=[window(rng, 300), window(rng, 300)],
        look=window(rng, 300),
        earlier=earlier(A, A, shift=0.0),
    )
    verdict = judge.judge(quiet, SETTINGS)
    assert (verdict["status"], verdict["flagged"], verdict["severity"]) == ("ok", False, "none")


def test_e_detector_alone_makes_a_drift_and_its_threshold_grows_with_the_fleet(drifting: Evidence) -> None:
    verdict = judge.judge(drifting, dataclasses.replace(SETTINGS, minimum_psi=9.0))
    assert verdict["e_detector"]["crossed"]
    assert not verdict["flagged"]
    assert (verdict["status"], verdict["severity"]) == ("drift", "warn")
    peers = {str(number): PeerLook({}, {}) for number in range(99)}
    threshold = judge.judge(dataclasses.replace(drifting, peers=peers), SETTINGS)["e_detector"]["threshold"]
    assert threshold == pytest.approx(np.log(100_000))


def test_predictions_drift_too() -> None:
    rng = np.random.default_rng(17)
    evidence = Evidence(
        names=NAMES,
        scores=SCORES,
        baseline=[window(rng, 300), window(rng, 300)],
        look=window(rng, 300, classes=(0.8, 0.2)),
        earlier=[EarlierLook(window(rng, 300, classes=(0.8, 0.2)), frozenset({"predictions"}))],
        prediction_baseline=np.array([300.0, 300.0]),
    )
    verdict = judge.judge(evidence, SETTINGS)
    assert verdict["status"] == "drift"
    assert verdict["predictions"]["flagged"]
    assert verdict["confirmed"] == ["predictions"]
    assert set(verdict["features"]) == set(NAMES)
    assert "predictions" not in judge.judge(dataclasses.replace(evidence, prediction_baseline=None), SETTINGS)


def test_many_p_values_of_peers_make_the_rule_stricter(drifting: Evidence) -> None:
    rng = np.random.default_rng(18)
    weak = dataclasses.replace(drifting, look=window(rng, 300, shift=0.4))
    alone = judge.judge(weak, SETTINGS)["features"]["a"]
    peers = {str(n): PeerLook(dict.fromkeys(NAMES, 0.9), dict.fromkeys(NAMES, 0.0)) for n in range(50)}
    among = judge.judge(dataclasses.replace(weak, peers=peers), SETTINGS)["features"]["a"]
    assert among["p"] == alone["p"]
    assert among["q"] == pytest.approx(min(1.0, alone["p"] * 153), rel=1e-6)
    assert alone["q"] <= alone["p"] * 3 + 1e-12


def test_verdict_is_a_json_document_with_the_classic_rule_beside_it(drifting: Evidence) -> None:
    verdict = json.loads(json.dumps(judge.judge(drifting, SETTINGS), allow_nan=False))
    assert {"status", "n", "m", "windows", "severity", "flagged", "features", "e_detector", "fleet"} <= set(verdict)
    entry = verdict["features"]["a"]
    assert (verdict["n"], verdict["m"]) == (300, 600)
    assert entry["psi"] - entry["bias"] == pytest.approx(entry["psi_corrected"])
    assert entry["classic_psi"] == (entry["psi"] > 0.1)


@pytest.mark.parametrize(
    ("value", "severity"),
    [
        (-0.1, "none"),
        (0.0199, "none"),
        (0.02, "info"),
        (0.05, "warn"),
        (0.0999, "warn"),
        (0.1, "act"),
        (0.25, "critical"),
    ],
)
def test_severities(value: float, severity: str) -> None:
    assert judge.severity_of(value) == severity


def test_worst_severity() -> None:
    assert judge.worst([]) == "none"
    assert judge.worst(["warn", "critical", "info"]) == "critical"


@pytest.mark.parametrize(
    ("counts", "usual", "faults"),
    [
        ({}, None, []),
        ({"missing": 4}, None, []),
        ({"missing": 5}, None, ["missing"]),
        ({"missing": 5}, {"missing": 5}, []),
        ({"missing": 12}, {"missing": 5}, ["missing"]),
        ({"out_of_range": 20}, None, []),
        ({"out_of_range": 21}, None, ["out_of_range"]),
        ({"schema_errors": 5}, None, ["schema_errors"]),
        ({"rows": 0, "schema_errors": 50}, None, ["schema_errors"]),
        ({"rows": 0}, None, []),
        ({"missing": 50, "out_of_range": 50}, None, ["missing", "out_of_range"]),
    ],
)
def test_data_quality_faults(counts: dict[str, int], usual: dict[str, int] | None, faults: list[str]) -> None:
    sound = WindowCounts(400, 0, 0, 0, (np.zeros(2),), np.zeros(2))
    look = dataclasses.replace(sound, **counts)  # type: ignore[arg-type]  # the table holds counts only
    baseline = dataclasses.replace(sound, **usual) if usual is not None else None  # type: ignore[arg-type]
    assert list(judge.quality_faults(look, SETTINGS, usual=baseline)) == faults
