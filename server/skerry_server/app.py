"""The one place where the parts of the runtime process are put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from skerry_server.broker import BrokerAccessController
from skerry_server.context import ServerContext
from skerry_server.controllers import ControllerRunner
from skerry_server.delivery.chunk_server import ChunkServer
from skerry_server.delivery.desired import DesiredPublisher
from skerry_server.delivery.reconnects import fleet_spread_ms
from skerry_server.federation.controller import CampaignController
from skerry_server.federation.flower.node_keys import node_keys_controller
from skerry_server.fitness.ledger import preferred_variants
from skerry_server.fleet.authority import CertificateAuthority
from skerry_server.fleet.reported import DeviceStateListener
from skerry_server.incidents.controller import IncidentController
from skerry_server.jobs.runner import JobRunner
from skerry_server.link import ServerLink, open_link
from skerry_server.monitoring.controller import DriftController
from skerry_server.monitoring.ingest import UplinkIngest
from skerry_server.rollouts.controller import RolloutController
from skerry_server.tally import Tally
from skerry_server.trust.publisher import TrustPublisher


@dataclass(frozen=True)
class Runtime:
    """Everything that runs in the process.

    Attributes:
        link: Connection to the broker.
        runner: Threads of the controllers.
        tally: Counts of messages from devices.
        waits: What is held back and why, a sentence each.
    """

    link: ServerLink
    runner: ControllerRunner
    tally: Tally
    waits: Callable[[], list[str]]

    def start(self) -> None:
        """Connect and start every controller."""
        self.link.start()
        self.runner.start()

    def stop(self, *, deadline_s: float) -> list[str]:
        """Stop controllers (and the jobs with them) and the link; returns who was still in a step at the deadline."""
        until = time.monotonic() + deadline_s
        hanging = self.runner.stop(deadline_s=deadline_s)
        self.link.stop(deadline_s=max(1.0, until - time.monotonic()))
        return hanging


def build_runtime(context: ServerContext) -> Runtime:
    """Make every part, connected to each other and not started.

    Raises:
        PlatformError: The broker's password cannot be read.
    """
    tally = Tally()
    link = open_link(context.config, context.layout, role="runtime")
    device_state = DeviceStateListener(context.database, link, tally)
    uplink = UplinkIngest(
        context.database, link, tally, authority=lru_cache(lambda: CertificateAuthority.load(context.layout.pki))
    )
    trust = TrustPublisher(context.database, link, context.layout, context.config.trust, context.signer)
    desired = DesiredPublisher(
        context.database,
        link,
        context.signer,
        trust,
        spread_ms=lambda session: fleet_spread_ms(session, context.config),
        preferred=preferred_variants,
    )
    chunks = ChunkServer(link, context.artifacts)
    device_state.start()
    uplink.start()
    trust.start()  # before desired states: it forgets first what a broken connection had published
    desired.start()
    chunks.start()
    jobs = JobRunner(context)
    runner = ControllerRunner(
        [
            device_state,
            uplink,
            trust,
            desired,
            chunks,
            BrokerAccessController(context.database, context.config, context.layout),
            jobs,
            node_keys_controller(context),
            CampaignController(context, link),
            RolloutController(context),
            DriftController(context),
            IncidentController(context),
        ],
        at_end={jobs.name: jobs.stop},
    )
    return Runtime(link=link, runner=runner, tally=tally, waits=desired.waits)
