"""The demo's phases, in order. Each does one thing of the loop and writes what it found into the result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skerry_agent.config import AgentLayout, load_config
from skerry_agent.link.outbox import Outbox
from skerry_models.task import Dataset, Task
from skerry_server.context import open_context
from skerry_simulation.client import ControlPlaneClient, Document
from skerry_simulation.demo.chaos import Chaos
from skerry_simulation.demo.device import Answers
from skerry_simulation.demo.fleet import (
    CONTROL_PLANE,
    DemoDevice,
    describe_processes,
    enroll_device,
    make_device,
    rows_of_window,
    start_agent,
    start_control_plane,
    wait_for_state,
)
from skerry_simulation.demo.judge import judge
from skerry_simulation.demo.observed import StoreReader
from skerry_simulation.demo.progress import Progress
from skerry_simulation.demo.result import DemoResult
from skerry_simulation.demo.settings import DemoSettings
from skerry_simulation.errors import StepError
from skerry_simulation.processes import DaemonGroup

POLICY = "demo-automatic"


@dataclass
class Story:
    """One run of the demo: what it works with, and the state that one phase leaves for the next."""

    settings: DemoSettings
    task: Task
    group: DaemonGroup
    progress: Progress
    result: DemoResult
    chaos: Chaos | None = None
    client: ControlPlaneClient = field(init=False)
    store: StoreReader = field(init=False)
    devices: list[DemoDevice] = field(default_factory=list)
    releases: dict[str, str] = field(default_factory=dict)

    def run(self) -> DemoResult:
        """Every phase; raises StepError with what was seen last if one does not get there."""
        phases: list[tuple[str, str, Callable[[], None]]] = [
            ("start", "control plane: broker, store, SuperLink, API, controllers", self.start),
            ("enrol", f"{self.settings.devices} devices, while the first model is trained", self.enrol),
            ("train", "a first model from the server's own data", self.train),
            ("rollout", "the first release: canary, then all", lambda: self.roll_out("v1")),
            ("serve", "applications ask, truth comes back, drift windows are reported", self.serve),
            ("federate", "federated rounds on what the devices hold", self.federate),
            ("offline", "broker, SuperLink and control plane are killed; the devices go on", self.offline),
            ("drift", f"the data of {self.settings.drifted_devices} devices drift", self.drift),
            ("recover", "the incident starts a campaign, its model is released", self.recover),
            ("judge", "what it was worth", self.judge),
        ]
        for name, text, phase in phases:
            with self.progress.during(name, text):
                if self.chaos is not None:
                    self.chaos.calm() if name in _CALM else self.chaos.phase_began()
                phase()
        self.result.timeline = self.progress.moments
        self.result.seconds = round(self.progress.elapsed_s, 1)
        return self.result

    # Phases

    def start(self) -> None:
        """The control plane answers."""
        self.client = start_control_plane(self.group, self.settings)
        self.store = StoreReader(self.settings.server_folder / "skerry.sqlite")
        self.progress.say(f"console at {self.client.url}, token in {self.settings.server_folder / 'admin-token'}")

    def enrol(self) -> None:
        """Central training starts; every device enrols and connects meanwhile."""
        self._start_training()
        names = self.task.client_names()
        if self.settings.devices > len(names):
            raise StepError("enrolling", f"task {self.task.name} has data for {len(names)} devices")
        identifiers = [f"{self.task.name}-{index + 1:02d}" for index in range(self.settings.devices)]
        with ThreadPoolExecutor(2) as pool:
            for done in [
                pool.submit(enroll_device, self.client, self.settings, identifier, name)
                for identifier, name in zip(identifiers, names, strict=False)
            ]:
                done.result(timeout=180)
        for index, (identifier, name) in enumerate(zip(identifiers, names, strict=False)):
            self.devices.append(make_device(self.task, self.settings, index, identifier, name))
            start_agent(self.group, self.settings, identifier)
        self._wait(
            "devices online",
            lambda: sum(bool(row["online"]) for row in self.client.items("/v1/devices")) == len(self.devices),
            seconds=120,
        )

    def train(self) -> None:
        """Central training, export, quantisation, gates, signature."""
        done = self._wait_job(self._start_training()["id"], "central training", seconds=600)
        self._publish("v1", done["result"]["candidate_id"])

    def roll_out(self, name: str) -> None:
        """Canary, then all."""
        release = self.releases[name]
        rollout = self.client.post(
            "/v1/rollouts",
            {
                "release_id": release,
                "cohort_id": "all",
                "canary_percent": self.settings.canary_percent,
                "probation_ms": self.settings.probation_ms,
            },
            existing=lambda: self._first("/v1/rollouts", lambda row: row["release_id"] == release),
        )
        self._finish_rollout(name, rollout["id"])

    def serve(self) -> None:
        """Baseline windows and labels; the first model judged on people or rows that nobody has seen."""
        self.result.accuracy["v1"] = self._accuracy_on_unseen()
        self.progress.say(f"first model on unseen data: {self.result.accuracy['v1']:.1%}")
        self._windows(self.settings.baseline_windows, drifted=False)

    def federate(self) -> None:
        """A campaign by hand, its model released by canary."""
        self._wait(
            "devices ready for a campaign",
            lambda: all(
                row["labelled_samples"] > 0 and row["flower_node_id"] and not row["ineligible_reason"]
                for row in self.client.items("/v1/devices")
            ),
            seconds=120,
        )
        settings: Document = {}
        if self.settings.federated_rounds:
            settings["rounds"] = self.settings.federated_rounds
        started = time.monotonic()
        campaign = self.client.post(
            "/v1/campaigns",
            {"task": self.task.name, "cohort_id": "all", "strategy": "fedavg", "settings": settings},
            existing=lambda: self._first("/v1/campaigns", lambda row: row["base_release"] == self.releases["v1"]),
        )
        finished = self._finish_campaign(campaign["id"], "first campaign")
        rounds = finished["rounds"]
        self.result.campaign = {
            "rounds": len(rounds),
            "seconds": round(time.monotonic() - started, 1),
            "seconds_per_round": round(float(np.median([row["seconds"] for row in rounds])), 3),
            "participants": max(row["accepted"] for row in rounds),
        }
        self._publish("federated", finished["candidate_id"])
        self.roll_out("federated")
        self.result.accuracy["federated"] = self._accuracy_on_unseen()
        self.progress.say(
            f"unseen data: {self.result.accuracy['v1']:.1%} before, {self.result.accuracy['federated']:.1%} federated"
        )

    def offline(self) -> None:
        """Everything but the devices is killed; they answer; then nothing is lost and nothing comes twice."""
        self.group.hold(CONTROL_PLANE)
        self.progress.say("killed; the devices are alone")

        def alone(device: DemoDevice) -> Answers:
            rng = np.random.default_rng(self.settings.seed)
            rows = rows_of_window(device, self.settings.offline_requests, rng)
            return device.application.ask(rows.x, count_errors=True)

        # One after the other: real devices do not share two cores, and the latency shall be that of a device.
        answers = [alone(device) for device in self.devices]
        latencies = np.array([value for answer in answers for value in answer.latencies_us])
        self.result.latencies_us = latencies.tolist()
        self.result.inference = {
            "p50_us": round(float(np.quantile(latencies, 0.5)), 1),
            "p99_us": round(float(np.quantile(latencies, 0.99)), 1),
            "offline_requests": len(self.devices) * self.settings.offline_requests,
            "offline_errors": sum(answer.errors for answer in answers),
        }
        self.progress.say(
            f"{self.result.inference['offline_requests']:,} requests, {self.result.inference['offline_errors']} errors"
        )
        self.group.release(CONTROL_PLANE)
        log = self.settings.folder / "logs" / "control-plane.log"
        wait_for_state(self.group, self.settings.server_folder, log)
        self._drain()

    def drift(self) -> None:
        """Windows with drifted data on some devices until an incident is there."""
        self._policy()
        incidents = self.client.items("/v1/incidents")
        self.result.drift = {"incidents_before": len(incidents)}
        self.result.accuracy["before_drift"] = self._accuracy_on_drifted_devices(drifted=False)
        self.result.accuracy["drifted"] = self._accuracy_on_drifted_devices(drifted=True)
        self.progress.say(
            f"accuracy there: {self.result.accuracy['before_drift']:.1%}, "
            f"after the drift {self.result.accuracy['drifted']:.1%}"
        )
        known = {row["id"] for row in incidents}
        for window in range(1, self.settings.drift_windows + 1):
            self._windows(1, drifted=True)
            self._wait("windows judged", lambda: self.store.unjudged() == 0, seconds=120)
            fresh = [row for row in self.client.items("/v1/incidents") if row["id"] not in known]
            if fresh:
                self.result.drift["windows_to_detect"] = window
                self.result.heat = self._heat()
                self.progress.say(f"incident {fresh[0]['id']} after {window} windows: {fresh[0]['detail']}")
                return
        raise StepError("noticing the drift", f"no incident within {self.settings.drift_windows} windows")

    def recover(self) -> None:
        """The policy turns the incident into a campaign and a release, without a person."""
        incident = self.client.items("/v1/incidents")[0]
        last = ""

        def seen(document: Document) -> None:
            nonlocal last
            line = f"{document['state']}: {document['detail']}"
            if line != last:
                self.progress.say(line)
            last = line

        done = self.client.wait_for(
            f"/v1/incidents/{incident['id']}",
            what="recovery",
            until=lambda row: row["state"] == "resolved",
            failed=lambda row: row["detail"] if row["state"] in _DEAD_ENDS else None,
            seconds=900,
            seen=seen,
        )
        campaign = self.client.get(f"/v1/campaigns/{done['campaign_id']}")
        self._remember_rounds(campaign, "after the drift")
        self.releases["recovered"] = str(campaign_release(self.client, campaign))
        self._remember_rollout("recovered", self.client.get(f"/v1/rollouts/{done['rollout_id']}"))

    def judge(self) -> None:
        """Accuracy after recovery, sizes, processes, bundles kept."""
        self.result.accuracy["recovered"] = self._accuracy_on_drifted_devices(drifted=True)
        self.result.drift["incidents_after"] = len(self.client.items("/v1/incidents"))
        metrics = self.client.get(f"/v1/releases/{self.releases['recovered']}")["metrics"]
        self.result.accuracy["int8_minus_fp32"] = round(metrics["int8_minus_fp32"], 4)
        self.result.artifact = {
            "fp32_bytes": int(metrics["size_fp32_bytes"]),
            "int8_bytes": int(metrics["size_int8_bytes"]),
        }
        self._drain()
        self.result.processes = describe_processes(self.group)
        self.result.restarts = {daemon.name: daemon.starts - 1 for daemon in self.group.daemons.values()}
        self._keep_bundles()
        for name in ("v1", "federated", "before_drift", "drifted", "recovered"):
            self.result.accuracy[name] = round(self.result.accuracy[name], 4)

    # What phases share

    def _start_training(self) -> Document:
        """The one training of the demo, started if it is not yet."""
        found = self._first("/v1/jobs", lambda row: row["kind"] == "train")
        if found is not None:
            return found
        return self.client.post(
            "/v1/trainings",
            {"task": self.task.name, "settings": {}},
            existing=lambda: self._first("/v1/jobs", lambda row: row["kind"] == "train"),
        )

    def _publish(self, name: str, candidate_id: str) -> None:
        candidate = self.client.wait_for(
            f"/v1/candidates/{candidate_id}",
            what=f"gates of {name}",
            until=lambda row: row["state"] in ("passed", "released"),
            failed=lambda row: f"rejected: {row['gates']}" if row["state"] == "rejected" else None,
            seconds=600,
        )
        release = self.client.post(
            f"/v1/candidates/{candidate_id}/publish",
            {},
            existing=lambda: self._first("/v1/releases", lambda row: row["candidate_id"] == candidate_id),
        )
        self.releases[name] = str(release["id"])
        metrics = candidate["metrics"]
        self.progress.say(
            f"release {release['id']}: holdout {metrics['accuracy']:.1%}, "
            f"int8 {metrics['int8_minus_fp32'] * 100:+.1f} points"
        )

    def _finish_rollout(self, name: str, rollout_id: str) -> None:
        last = ""

        def seen(document: Document) -> None:
            nonlocal last
            if document["state"] != last:
                self.progress.say(f"rollout of {name}: {document['state']} {document['detail']}".rstrip())
            last = document["state"]

        done = self.client.wait_for(
            f"/v1/rollouts/{rollout_id}",
            what=f"rollout of {name}",
            until=lambda row: row["state"] == "finished",
            failed=lambda row: row["detail"] if row["state"] in ("rolled_back", "aborted", "failed") else None,
            seconds=600,
            seen=seen,
        )
        self._remember_rollout(name, done)

    def _remember_rollout(self, name: str, document: Document) -> None:
        canaries = [row["device_id"] for row in document["devices"] if row["stage"] == "canary"]
        self.result.rollouts.append(
            {"name": name, "release": document["release_id"], "state": document["state"], "canary_devices": canaries}
        )

    def _finish_campaign(self, campaign_id: str, name: str) -> Document:
        said = 0

        def seen(document: Document) -> None:
            nonlocal said
            for row in document["rounds"][said:]:
                self.progress.say(
                    f"round {row['number']}: {row['accepted']} devices, {row['seconds']:.1f} s, "
                    f"holdout {row['accuracy']:.1%}"
                )
            said = len(document["rounds"])

        done = self.client.wait_for(
            f"/v1/campaigns/{campaign_id}",
            what=name,
            until=lambda row: row["state"] == "finished",
            failed=lambda row: row["detail"] if row["state"] in ("failed", "aborted") else None,
            seconds=900,
            seen=seen,
        )
        self._remember_rounds(done, name)
        return done

    def _remember_rounds(self, campaign: Document, name: str) -> None:
        self.result.rounds += [
            {"campaign": name, "number": row["number"], "accuracy": row["accuracy"]} for row in campaign["rounds"]
        ]

    def _windows(self, count: int, *, drifted: bool) -> None:
        """Let every device see ``count`` windows of rows and wait until they are in the store."""
        active = {row["id"]: row["active_release"] for row in self.client.items("/v1/devices")}
        before = {device.id: self.store.windows(device.id, active[device.id]) for device in self.devices}

        def see(device: DemoDevice) -> None:
            rng = np.random.default_rng([self.settings.seed, before[device.id]])
            for _ in range(count):
                rows = rows_of_window(device, self.settings.window_rows, rng)
                x = self.task.apply_drift(rows.x, device.drift_seed) if drifted and device.drifts else rows.x
                device.application.ask(x, truth=rows.y, batch=30)

        self._everywhere(see)
        self._wait(
            "drift windows in the store",
            lambda: all(self.store.windows(d.id, active[d.id]) >= before[d.id] + count for d in self.devices),
            seconds=90,
        )

    def _accuracy_on_unseen(self) -> float:
        return judge(self.settings.agent_folder(self.devices[-1].id), self.task.source("unseen"))

    def _accuracy_on_drifted_devices(self, *, drifted: bool) -> float:
        right = 0.0
        devices = [device for device in self.devices if device.drifts]
        for device in devices:
            data = device.held_out
            if drifted:
                data = Dataset(self.task.apply_drift(data.x, device.drift_seed), data.y)
            right += judge(self.settings.agent_folder(device.id), data) * len(data)
        return right / sum(len(device.held_out) for device in devices)

    def _policy(self) -> None:
        settings: Document = {
            "cohort_id": "all",
            "strategy": "fedavg",
            "canary_percent": self.settings.canary_percent,
            "probation_ms": self.settings.probation_ms,
            # A fleet this small, minutes after its last campaign: what guards a real one would stop the demo.
            "cooldown_ms": 0,
            "minimum_devices": 1,
            "minimum_labelled_devices": 1,
        }
        if self.settings.federated_rounds:
            settings["rounds"] = self.settings.federated_rounds
        self.client.put(f"/v1/policies/{POLICY}", {"task": self.task.name, "enabled": True, "settings": settings})

    def _drain(self) -> None:
        """Wait until every message that the devices hold is in the store, and check that each is there once."""
        outboxes = [open_outbox(self.settings.agent_folder(device.id)) for device in self.devices]
        try:
            # A health report may be on its way at any moment.
            self._wait("buffered reports in the store", lambda: all(box.depth() <= 1 for box in outboxes), seconds=240)
        finally:
            for box in outboxes:
                box.close()
        # The database key makes a message's second arrival impossible to store; a gap would be one that was lost.
        self._wait("gaps in what devices sent", lambda: not self._gaps(), seconds=120)
        for device in self.devices:
            self.result.uplinks[device.id] = sum(count for count, _, _ in self.store.uplinks(device.id).values())

    def _gaps(self) -> list[str]:
        """Outboxes of which the store holds some later message but not every earlier one."""
        return [
            outbox
            for device in self.devices
            for outbox, (count, lowest, highest) in self.store.uplinks(device.id).items()
            if count != highest - lowest + 1 or lowest != 1
        ]

    def _heat(self) -> dict[str, Any]:
        matrix = self.client.get("/v1/drift", task=self.task.name)
        features = matrix["features"]
        rows = matrix["devices"]
        return {
            "features": features,
            "devices": [row["device_id"] for row in rows],
            "psi": [[row["cells"].get(name, {}).get("psi_corrected") or 0.0 for name in features] for row in rows],
        }

    def _keep_bundles(self) -> None:
        folder = self.settings.folder / "bundles"
        context = open_context(self.settings.server_folder)
        for name, release in self.releases.items():
            digest = self.client.get(f"/v1/releases/{release}")["bundle_sha256"]
            shutil.copytree(context.artifacts.bundle_folder(digest), folder / name, dirs_exist_ok=True)
        context.database.close()
        self.result.bundles = str(folder)

    def _everywhere(self, act: Callable[[DemoDevice], Any]) -> list[Any]:
        with ThreadPoolExecutor(len(self.devices)) as pool:
            return [done.result(timeout=900) for done in [pool.submit(act, device) for device in self.devices]]

    def _first(self, path: str, matches: Callable[[Document], bool]) -> Document | None:
        return next((row for row in self.client.items(path) if matches(row)), None)

    def _wait_job(self, job_id: str, what: str, *, seconds: float) -> Document:
        return self.client.wait_for(
            f"/v1/jobs/{job_id}",
            what=what,
            until=lambda row: row["state"] == "done",
            failed=lambda row: row["error"] if row["state"] == "failed" else None,
            seconds=seconds,
        )

    def _wait(self, what: str, condition: Callable[[], bool], *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self.group.check()
            if time.monotonic() > deadline:
                raise StepError(f"waiting for {what}", f"not within {seconds:g} s")
            time.sleep(0.25)


#: Phases in which chaos kills nothing: one counts errors, the other what is left.
_CALM = ("offline", "judge")
_DEAD_ENDS = ("rejected", "dismissed", "rolled_back", "breaker_open")


def open_outbox(agent_folder: Path) -> Outbox:
    """The outbox of a running agent, to look at."""
    layout = AgentLayout(agent_folder)
    config = load_config(layout)
    return Outbox(
        layout.outbox,
        device_id=config.device_id,
        message_limit=config.outbox_messages,
        byte_limit=config.outbox_bytes,
    )


def campaign_release(client: ControlPlaneClient, campaign: Document) -> str:
    """The release that a campaign's candidate became."""
    candidate = campaign["candidate_id"]
    for row in client.items("/v1/releases"):
        if row["candidate_id"] == candidate:
            return str(row["id"])
    raise StepError("recovery", f"candidate {candidate} was never released")
