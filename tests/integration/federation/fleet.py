"""Everything that a campaign needs, running: SuperLink, devices, controller and job runner over real files."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from integration.federation.link_proxy import LinkProxy
from integration.federation.rig import TASK, TASK_PACKAGE, Agent, ControlPlane, Courier, SuperLink, build_bundle, poll
from skerry_models.task import load_task
from skerry_server.federation import campaign_machine, service
from skerry_server.federation.controller import CampaignController
from skerry_server.federation.flower.node_keys import NodeKeysController
from skerry_server.federation.service import job_id
from skerry_server.jobs.runner import JobRunner
from skerry_server.store.tables import Campaign, CampaignRound, CampaignUpdate, Candidate, Job

NAMES = ("c00", "c01", "c02")


class Fleet:
    """Devices and a control plane without broker and API.

    Attributes:
        proxy: The link between devices and SuperLink, which can be cut.
        unlock: Set to let go of the store before its time.
    """

    def __init__(self, root: Path, names: Sequence[str] = NAMES) -> None:
        self.unlock = threading.Event()
        bundle = build_bundle(root / "bundle")
        self.plane = ControlPlane.create(root / "server", bundle)
        self.context = self.plane.context
        self.link = SuperLink(self.context.layout, self.context.config)
        self.link.start()
        self.proxy = LinkProxy(self.link.port)
        self._root = root
        self.agents: list[Agent] = []
        for name in names:
            self._add(name)
        self.node_keys = NodeKeysController(self.context.database, lambda: self.link.nodes)
        self.controller = CampaignController(self.context, Courier(self.context, self.agents))
        self.runner = JobRunner(self.context)

    def _add(self, name: str) -> None:
        agent = Agent(self._root / name, name, self.plane.bundle, self.link, port=self.proxy.port)
        samples = load_task(TASK).source(f"client/{name}")
        agent.label(samples.x, samples.y)
        self.agents.append(agent)

    def join(self, name: str) -> None:
        """One more device, which :meth:`up` starts."""
        self._add(name)
        self.restart_controller()

    def training(self, name: str, number: int) -> bool:
        """Whether a device's training process says that it trains in that round."""
        return str(self.agent(name).status().get("detail", "")).endswith(f"round {number}")

    def up(self) -> None:
        """Enrol the devices, start those that are not running and let them report."""
        self.plane.enrol(self.agents)
        self.node_keys.step()
        for agent in self.agents:
            (agent.layout.run / "pause-training").unlink(missing_ok=True)
            if agent.process is None:
                agent.layout.training_file.unlink(missing_ok=True)
                agent.start()
        for agent in self.agents:
            poll(agent.joined, what=f"{agent.device_id} joins", seconds=90)
        self.plane.enrol(self.agents)

    def start(self, *, strategy: str = "fedprox", **settings: object) -> str:
        """Ask for a campaign and recruit for it."""
        campaign_id = self.ask(strategy=strategy, **settings)
        self.drive(lambda: self.campaign(campaign_id).state == campaign_machine.RUNNING, what="it runs")
        return campaign_id

    def ask(self, *, strategy: str = "fedprox", **settings: object) -> str:
        """Ask for a campaign."""
        with self.context.database.transaction() as session:
            campaign = service.start_campaign(
                session,
                task=TASK,
                cohort_id="all",
                strategy=strategy,
                settings={"rounds": 2, "quorum": 1.0, **settings},
                actor="test",
            )
        return campaign.id

    def drive(self, condition: Callable[[], object], *, what: str, seconds: float = 120.0) -> None:
        """Step controller and job runner until a condition holds."""

        def stepped() -> bool:
            self.controller.step()
            with self.context.database.transaction() as session:  # gates are not what is tested here, and heavy
                session.execute(sa.delete(Job).where(Job.kind == "candidate"))
            self.runner.step()
            return bool(condition())

        # A step reads the store many times: asked all the time, it takes the core from the processes it waits for.
        poll(stepped, what=what, seconds=seconds, every_s=0.1)

    def campaign(self, campaign_id: str) -> Campaign:
        """Its row."""
        with self.context.database.reading() as session:
            return session.get_one(Campaign, campaign_id)

    def job(self, campaign_id: str) -> Job:
        """The row of its job."""
        with self.context.database.reading() as session:
            return session.get_one(Job, job_id(campaign_id))

    def rounds(self, campaign_id: str) -> list[CampaignRound]:
        """Committed rounds."""
        with self.context.database.reading() as session:
            return service.campaign_rounds(session, campaign_id)

    def updates(self, campaign_id: str, number: int) -> set[str]:
        """Devices whose update of a round is journalled."""
        query = sa.select(CampaignUpdate.device_id).where(
            CampaignUpdate.campaign_id == campaign_id, CampaignUpdate.round == number
        )
        with self.context.database.reading() as session:
            return set(session.scalars(query))

    def delivered(self, campaign_id: str) -> Candidate:
        """Wait until the campaign has become a candidate, and let it pass."""
        self.drive(
            lambda: self.campaign(campaign_id).state != campaign_machine.RUNNING, what="the campaign ends", seconds=180
        )
        row = self.campaign(campaign_id)
        assert row.state == campaign_machine.GATING, row.detail
        with self.context.database.transaction() as session:
            candidate = session.get_one(Candidate, row.candidate_id)
            candidate.state = "passed"
        self.controller.step()
        assert self.campaign(campaign_id).state == campaign_machine.FINISHED
        return candidate

    def hold(self, name: str) -> Path:
        """Make a device's training wait before its next step; returns the file to remove."""
        agent = self.agent(name)
        path = agent.layout.run / "pause-training"
        path.touch()
        return path

    def agent(self, name: str) -> Agent:
        """One device."""
        return next(agent for agent in self.agents if agent.device_id == name)

    def received(self, campaign_id: str) -> dict[tuple[int, str], int]:
        """Round and device to the moment at which the update was journalled."""
        query = sa.select(CampaignUpdate).where(CampaignUpdate.campaign_id == campaign_id)
        with self.context.database.reading() as session:
            return {(row.round, row.device_id): row.received_ms for row in session.scalars(query)}

    def restart_controller(self) -> None:
        """A controller that knows nothing but what the store says."""
        self.controller = CampaignController(self.context, Courier(self.context, self.agents))

    def drop_candidate(self, campaign_id: str) -> None:
        """Let the campaign's candidate pass, so that the next campaign may begin."""
        with self.context.database.transaction() as session:
            session.get_one(Candidate, self.campaign(campaign_id).candidate_id).state = "passed"
        self.controller.step()

    def mend(self) -> None:
        """Undo whatever an earlier test left: the SuperLink runs, the link is whole, no campaign is under way."""
        self.proxy.mend()
        with self.context.database.transaction() as session:
            for row in service.list_campaigns(session, task=TASK):
                if row.state in campaign_machine.ACTIVE:
                    service.abort_campaign(session, row.id, reason="the next test begins", actor="test")
        if self.link.process is None:
            self.link.start()

    def close(self) -> None:
        """Stop every process."""
        self.unlock.set()
        self.runner.stop()
        for agent in self.agents:
            agent.kill(signal.SIGTERM)
        self.link.kill(signal.SIGTERM)
        self.proxy.close()
        self.context.close()


@contextmanager
def running_fleet(root: Path, names: Sequence[str] = NAMES) -> Iterator[Fleet]:
    """A fleet whose task is installed for this process and for the jobs'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TASK_PACKAGE))
        patch.setenv("PYTHONPATH", str(TASK_PACKAGE), prepend=os.pathsep)  # for the job processes
        load_task.cache_clear()
        fleet = Fleet(root, names)
        try:
            yield fleet
        finally:
            fleet.close()
            load_task.cache_clear()
