"""numba, where it is installed: the one place that imports it.

Compiled code is kept in ``<cache folder>/numba`` (:func:`skerry_models.cache.cache_folder`), so that a machine compiles
once and not once per process; where that cannot be written, each process compiles anew. ``NUMBA_CACHE_DIR`` overrules.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

from skerry_models.cache import cache_folder

logger = logging.getLogger(__name__)


@functools.cache
def available() -> bool:
    """Is numba installed? Does not import it."""
    return find_spec("numba") is not None


@functools.cache
def _decorator() -> Callable[[Any], Any]:
    import numba

    cached = True
    if not os.environ.get("NUMBA_CACHE_DIR"):
        folder = cache_folder() / "numba"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.info("compiled kernels are not kept: %s", error)
        cached = os.access(folder, os.W_OK)
        if cached:
            numba.config.CACHE_DIR = str(folder)
    return cast("Callable[[Any], Any]", numba.njit(cache=cached, nogil=True))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled at its first call, without the interpreter lock; imports numba.

    No ``fastmath``: additions stay in the order in which they are written, so that NumPy gives the same bits.
    """
    return cast("Callable[..., Any]", _decorator()(function))
