"""What training keeps on the device between rounds and restarts, in one folder.

``models``: models that the next one may be a difference from. ``campaigns``: what belongs to answers, per campaign.
``personal``: parameters that stay here, per task. ``forms``: releases with them, :mod:`.personal_forms`.
``fresh.json``: which labelled samples an accepted update has seen.
Everything is a cache of something that can be had again or done without; removing the folder is always safe, and costs
a campaign in progress the residual or control variate of this device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skerry_agent.files import DISK, Disk
from skerry_agent.training.campaign_journal import CampaignJournal
from skerry_agent.training.personal import PersonalParameters
from skerry_agent.training.round_models import RoundModels


@dataclass(frozen=True)
class DeviceState:
    """The stores; used by one thread.

    Attributes:
        models: See :mod:`skerry_agent.training.round_models`.
        journal: See :mod:`skerry_agent.training.campaign_journal`.
        personal: See :mod:`skerry_agent.training.personal`.
    """

    models: RoundModels
    journal: CampaignJournal
    personal: PersonalParameters

    @classmethod
    def open(cls, folder: Path | None, *, reserve: int = 0, disk: Disk = DISK) -> DeviceState:
        """The stores below a folder.

        Args:
            folder: None: in memory only, for simulated devices.
            reserve: Free space that training leaves to updates (bytes).
            disk: What changes the file system.
        """

        def below(name: str) -> Path | None:
            return None if folder is None else folder / name

        return cls(
            RoundModels(below("models"), reserve=reserve, disk=disk),
            CampaignJournal(below("campaigns"), reserve=reserve, disk=disk),
            PersonalParameters(below("personal"), reserve=reserve, disk=disk),
        )


def open_personal(folder: Path) -> PersonalParameters:
    """What campaigns keep below the same folder, for another thread that only reads; opened before both run."""
    return PersonalParameters(folder / "personal")
