"""Every exception that overlapc raises: what happened, where, and the remedy.

Failing to optimise is never an error; being unable to keep the meaning of a program is.
"""

from __future__ import annotations

from functools import partial
from typing import Any


class OverlapcError(RuntimeError):
    """Base of all our errors. Its text is ``what``, ``where`` and ``remedy`` in three sentences."""

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        super().__init__(f"{what} Where: {where}. Remedy: {remedy}")
        self.what = what
        self.where = where
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, which worker processes do to errors, would else lose the keywords."""
        return partial(type(self), where=self.where, remedy=self.remedy), (self.what,)


class OptionError(OverlapcError, ValueError):
    """An option or environment variable that does not exist, or a value it cannot take."""


class ProblemError(OverlapcError, ValueError):
    """A size, dtype or collective that cannot be planned."""


class TargetError(OverlapcError, ValueError):
    """A target that cannot be found, read or used here."""


class PlanError(OverlapcError, ValueError):
    """A plan that cannot be read, or rows that do not cut the problem."""


class ReportError(OverlapcError, ValueError):
    """A report that cannot be read, or a site that says something impossible of itself."""


class ArtifactError(OverlapcError):
    """A compiled graph that cannot be saved, or that another version saved."""


class CommandError(OverlapcError):
    """A command line that names something that is not there, or that this process cannot do."""


class GroupError(OverlapcError):
    """A process group that does not exist (any more), or that cannot be measured."""


class DisagreementError(OverlapcError):
    """Members of one group with other sources, options, targets, collectives or sizes of a call."""


class KernelError(OverlapcError):
    """A kernel that cannot be generated or built for what was asked."""


class TrialError(OverlapcError):
    """A plan that could not be run in a trial; what it sends was sent, so that its peers go on."""


class SignalError(OverlapcError):
    """A band that was waited for and never announced; its collective was sent all the same."""
