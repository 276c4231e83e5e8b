"""What a trial sends: noted once without sending it, and sent to its end by a rank that fails.

Its peers cannot know that one rank ran out of memory between two collectives. So that rank sends
what is left of the plan, whatever lies in it, and says only then that it failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from overlapc.runtime.ranks import patience
from overlapc.runtime.ranks.sending import IN_STREAM, Sender, Work


@dataclass(frozen=True)
class Sent:
    """One collective of a plan, as ``Sender.start`` is asked for it."""

    out: tuple[int, ...]
    given: tuple[int, ...]
    dtype: torch.dtype
    receives: tuple[int, ...]
    sends: tuple[int, ...]
    is_plain: bool


class TrialSender(Sender):
    """The sender of a problem's trials, which run one after another."""

    def __init__(self, collective: str, group: dist.ProcessGroup, device: torch.device) -> None:
        """``group``: whose members try, on it or a communicator beside it; ``device``: of this
        rank."""
        super().__init__(collective, "sum")
        self.group, self.device = group, device
        self._noted: list[Sent] | None = None
        self.begin()

    @contextmanager
    def rehearsal(self) -> Iterator[list[Sent]]:
        """Send nothing in here; what would be sent is in the list."""
        self._noted = noted = []
        try:
            yield noted
        finally:
            self._noted = None

    def begin(self) -> None:
        """Forget what was sent: the next plan starts."""
        self._started, self._is_lost = 0, False
        self._in_flight: dict[Work, None] = {}

    def finish(self, rehearsed: Sequence[Sent]) -> bool:
        """Send what is left of a plan that failed on this rank, with anything in it.

        False, with nothing more sent, where a collective itself failed: then nobody knows what is
        left. Raises what torch does where that cannot be sent either.
        """
        if self._is_lost:
            return False
        for work in list(self._in_flight):
            work.wait()
        for its in rehearsed[self._started :]:  # one by one: there may be little memory
            given = torch.empty(its.given, dtype=its.dtype, device=self.device)
            is_in_place = self.collective == "all_reduce"
            out = given if is_in_place else given.new_empty(its.out)
            if its.is_plain:
                self.start_plain(self.group, out, given).wait()
            else:
                self.start(self.group, out, given, its.receives, its.sends).wait()
        return True

    def start(
        self,
        group: dist.ProcessGroup,
        out: torch.Tensor,
        sent: torch.Tensor,
        receives: Sequence[int] = (),
        sends: Sequence[int] = (),
    ) -> Work:
        """As ``Sender.start``, or note it alone."""
        if self._noted is not None:
            return self._note(out, sent, receives, sends)
        return super().start(group, out, sent, receives, sends)

    def start_plain(self, group: dist.ProcessGroup, out: torch.Tensor, sent: torch.Tensor) -> Work:
        """As ``Sender.start_plain``, or note it alone."""
        if self._noted is not None:
            return self._note(out, sent, is_plain=True)
        return super().start_plain(group, out, sent)

    def on_its_way(self, begin: Callable[[], Work | None]) -> Work:
        """Begin and count a collective, which is waited for with patience."""
        try:
            work = super().on_its_way(begin)
        except BaseException:
            self._is_lost = True
            raise
        self._started += 1
        watched = _Watched(self, work)
        self._in_flight[watched] = None
        return watched

    def has_come(self, work: Work, watched: Work) -> None:
        """Wait for what is behind a watched work."""
        try:
            patience.wait(self.group, work, self.device)
        except BaseException:
            self._is_lost = True
            raise
        self._in_flight.pop(watched, None)

    def _note(
        self,
        out: torch.Tensor,
        sent: torch.Tensor,
        receives: Sequence[int] = (),
        sends: Sequence[int] = (),
        *,
        is_plain: bool = False,
    ) -> Work:
        assert self._noted is not None
        sizes = tuple(out.shape), tuple(sent.shape), sent.dtype
        self._noted.append(Sent(*sizes, tuple(receives), tuple(sends), is_plain))
        return IN_STREAM


class _Watched:
    def __init__(self, sender: TrialSender, work: Work) -> None:
        self._sender, self._work = sender, work

    def wait(self) -> None:
        self._sender.has_come(self._work, self)
