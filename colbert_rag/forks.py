"""What a forked process makes anew: locks that other threads held, threads that are not there."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewable(Protocol):
    """An object with locks or threads of its own."""

    def renew(self) -> None:
        """Make them anew; called in a forked child, before any of its own code runs."""
        ...


def renewed_after_fork(renewable: Renewable) -> None:
    """See that `renewable` can be used in a forked child, for as long as it lives.

    A fork copies the memory and only the thread that forks. A lock that another thread held at that
    moment would stay locked for ever in the child.
    """
    _RENEWABLES.add(renewable)


def _renew_all() -> None:
    for renewable in list(_RENEWABLES):
        renewable.renew()


_RENEWABLES: weakref.WeakSet[Renewable] = weakref.WeakSet()

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_all)
