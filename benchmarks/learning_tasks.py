"""Tasks of the learning benchmark: every published training person is a client, and shops whose assortments differ.

They are found by the entry points beside this file (``skerry_learning_tasks-1.0.dist-info``), as a user's package is.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from skerry_models.datasets.har_source import HarWindows, load_har
from skerry_models.task import CENTRAL, CLIENT_PREFIX, HOLDOUT, UNSEEN, Dataset, Int64, check_source
from skerry_models.tasks.fashion import FashionTask
from skerry_models.tasks.har import HarTask

#: Training people of the published split.
PEOPLE = (1, 3, 5, 6, 7, 8, 11, 14, 15, 16, 17, 19, 21, 22, 23, 25, 26, 27, 28, 29, 30)
TRANSITIONS = ("stand-to-sit", "sit-to-stand", "sit-to-lie", "lie-to-sit", "stand-to-lie", "lie-to-stand")
SHOPS, SHOP_ROWS, SKEW = 20, 500, 0.1


class EveryPerson(HarTask):
    """Windows of the activity data with all 21 training people as clients.

    ``central`` is all of them together, for the comparison with one machine that has everything; ``holdout`` and
    ``unseen`` are the test people.
    """

    def __init__(self, name: str, classes: tuple[str, ...]) -> None:
        self.name = name
        self.classes = classes

    def client_names(self) -> tuple[str, ...]:
        """person-01 to person-30, by the published number."""
        return tuple(f"person-{number:02d}" for number in PEOPLE)

    def source(self, name: str) -> Dataset:
        """See :class:`~skerry_models.task.Task`."""
        clients = dict(zip((CLIENT_PREFIX + client for client in self.client_names()), PEOPLE, strict=True))
        check_source(self.name, name, [*clients, CENTRAL, HOLDOUT, UNSEEN])
        windows = self._everything
        rows = windows.y < len(self.classes)
        if name in clients:
            rows = rows & (windows.subject == clients[name]) & ~windows.test
        else:
            rows = rows & (~windows.test if name == CENTRAL else windows.test)
        return Dataset(np.ascontiguousarray(windows.x[rows].transpose(0, 2, 1)), windows.y[rows].astype(np.int64))

    @cached_property
    def _everything(self) -> HarWindows:
        return load_har()


class SkewedShops(FashionTask):
    """Twenty shops whose shares of the ten classes are drawn from a Dirichlet distribution (Hsu et al., 1909.06335)."""

    name = "fashion-skewed"

    def client_names(self) -> tuple[str, ...]:
        """shop-01 to shop-20."""
        return tuple(f"shop-{index:02d}" for index in range(1, SHOPS + 1))

    def source(self, name: str) -> Dataset:
        """See :class:`~skerry_models.task.Task`."""
        if not name.startswith(CLIENT_PREFIX):
            return super().source(name)
        check_source(self.name, name, [CLIENT_PREFIX + client for client in self.client_names()])
        pool = self._pool
        return pool.take(self._shares[name.removeprefix(CLIENT_PREFIX)])

    @cached_property
    def _pool(self) -> Dataset:
        parts = [super(SkewedShops, self).source(f"{CLIENT_PREFIX}shop-{index:02d}") for index in range(1, 41)]
        return Dataset(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))

    @cached_property
    def _shares(self) -> dict[str, Int64]:
        generator = np.random.default_rng(1)
        left = [list(generator.permutation(np.flatnonzero(self._pool.y == label))) for label in range(10)]
        shares: dict[str, Int64] = {}
        for client in self.client_names():
            counts = generator.multinomial(SHOP_ROWS, generator.dirichlet([SKEW] * 10))
            shares[client] = np.array(
                sorted(left[label].pop() for label, count in enumerate(counts) for _ in range(count)), dtype=np.int64
            )
        return shares


def har_basic() -> EveryPerson:
    """Six basic activities."""
    return EveryPerson("har-21", HarTask.classes)


def har_all() -> EveryPerson:
    """Twelve classes: the postural transitions too."""
    return EveryPerson("har-21-transitions", (*HarTask.classes, *TRANSITIONS))


def fashion_skewed() -> SkewedShops:
    """See :class:`SkewedShops`."""
    return SkewedShops()
