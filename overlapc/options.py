"""The one record of what a user can choose, and the one reader of ``OVERLAPC_*`` variables."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from overlapc.errors import OptionError
from overlapc.planning.target import Target

CHOICES = {
    "overlap": ("auto", "off", "serial", "chunked", "signaled"),
    "softmax": ("auto", "off", "sdpa", "unified", "running", "online"),
    "linear": ("auto", "off", "flat"),
}


@dataclass(frozen=True)
class Options:
    """What ``torch.compile(options={...})`` and the environment may set.

    ``OVERLAPC_DUMP``, ``OVERLAPC_DISABLE``, ``OVERLAPC_FUEL`` and ``OVERLAPC_VERIFY`` set the
    fields of those names where ``options`` does not.
    """

    target: str | Target = "auto"
    """A shipped or stored target's name, a file, a ``Target``; "auto": what this machine measured,
    else the shipped target nearest to the device."""
    overlap: str = "auto"
    """"auto": what the planner predicts to pay; "off": no chain is touched; or one schedule forced
    at every chain: "serial" leaves them to Inductor."""
    softmax: str = "auto"
    """Attention. "auto": torch's fused one where that was measured to pay, on GPUs a kernel of our
    own where `overlapc calibrate --attention` measured it to, or much is predicted; "off": none is
    rewritten; "sdpa": the fused one wherever it gives the same; "unified": a kernel of our own on
    GPUs that keeps no running maximum where the scores let it, as the reason of each site says;
    "running": the same, relative to what earlier calls left where nothing else is known, so that
    equal calls may differ in their last bits; "online": the same kernel, and keeps a maximum."""
    linear: str = "auto"
    """Linear layers of few rows. "auto": what `overlapc calibrate --linear` measured to beat the
    library here, nothing without it; "off": not looked at; "flat": what is generated, or another
    way to call the library on processors, wherever it may run."""
    agreement_seconds: float = 300.0
    """How long a rank waits at a group's first use for the others to say which sources, options and
    target they use; a rank with a cold cache compiles meanwhile."""
    dump: str = ""
    """Directory for the graphs before and after every pass, plans, and the generated modules
    of signaled chains."""
    disable: tuple[str, ...] = ()
    """Passes that do not run, by name."""
    fuel: int = -1
    """At most so many rewrites in this process, to bisect a wrong result; -1: no limit."""
    verify: bool = False
    """Compare the sizes of every call across the ranks of its group before it communicates. And a
    signaled group that is not announced within ``agreement_seconds`` is an error that names it."""
    inductor: Mapping[str, Any] = field(default_factory=dict)
    """Passed to Inductor as its own configuration."""

    def __post_init__(self) -> None:
        for option in fields(self):
            _check_type(option.name, getattr(self, option.name))
        if not 0 < self.agreement_seconds < float("inf"):
            raise OptionError(
                f"Option 'agreement_seconds' cannot be {self.agreement_seconds!r}.",
                where="options of backend 'overlapc'",
                remedy="give a number of seconds above zero",
            )
        if self.fuel < -1:
            raise OptionError(
                f"Option 'fuel' cannot be {self.fuel}.",
                where="options of backend 'overlapc', or OVERLAPC_FUEL",
                remedy="give the number of rewrites, or -1 for no limit",
            )
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise OptionError(
                    f"Option {name!r} cannot be {value!r}.",
                    where="options of backend 'overlapc'",
                    remedy=f"choose one of {', '.join(map(repr, allowed))}"
                    + _nearest(value, allowed),
                )

    def key(self) -> str:
        """Return a text, equal on two ranks iff they would compile alike: all but where to dump."""
        parts = []
        for option in fields(self):
            value: Any = getattr(self, option.name)
            if option.name == "target" and isinstance(value, Target):
                value = value.fingerprint
            if option.name == "inductor":
                value = [(key, _stable(item)) for key, item in sorted(value.items())]
            if option.name != "dump":
                parts.append(f"{option.name}={value!r}")
        return ";".join(parts)

    def digest(self) -> str:
        """Return a short hash of ``key``."""
        return hashlib.sha256(self.key().encode()).hexdigest()[:12]


def _stable(value: Any) -> Any:
    """Return what stands for a value on every rank: a custom pass says so by its ``uuid``."""
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    if hasattr(value, "uuid"):
        return value.uuid()
    if callable(value):
        raise OptionError(
            f"{value!r} has no text that is the same on every rank.",
            where="option 'inductor' of backend 'overlapc'",
            remedy="derive it from torch._inductor.custom_graph_pass.CustomGraphPass, with a uuid",
        )
    return value


_TYPES: dict[str, tuple[type, ...]] = {
    "target": (str, Target),
    "agreement_seconds": (int, float),
    "disable": (tuple,),
    "fuel": (int,),
    "verify": (bool,),
    "inductor": (Mapping,),
}


def _check_type(name: str, value: object) -> None:
    allowed = _TYPES.get(name, (str,))
    # bool is an int to Python, but `fuel=True` is a mistake.
    if isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool)):
        return
    raise OptionError(
        f"Option {name!r} is {value!r} of type {type(value).__name__}.",
        where="options of backend 'overlapc'",
        remedy=f"give a value of type {' or '.join(t.__name__ for t in allowed)}"
        + (" or list" if tuple in allowed else ""),
    )


def _nearest(name: str, known: tuple[str, ...]) -> str:
    match = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _instead_of(name: str, value: object, known: tuple[str, ...]) -> str:
    """What to write in place of an option that there is not."""
    if name == "mode":  # torch.compile takes a mode or options, not both
        modes = f"torch._inductor.list_mode_options({value!r})"
        return f"give what the mode stands for to Inductor: options={{'inductor': {modes}}}"
    near = _nearest(name, known)
    own = f"; what is Inductor's own goes into 'inductor': {{'{name}': {value!r}}}"
    return f"use one of {', '.join(known)}{near or own}"


def from_user(options: Mapping[str, Any] | None) -> Options:
    """Return the validated record of a user's ``options`` over the environment's.

    Raises ``OptionError`` for an unknown name, naming the nearest valid one, and for a wrong type.
    """
    given = dict(_from_environment(os.environ))
    known = tuple(option.name for option in fields(Options))
    for name, value in (options or {}).items():
        if name not in known:
            raise OptionError(
                f"There is no option {name!r}.",
                where="options of backend 'overlapc'",
                remedy=_instead_of(name, value, known),
            )
        given[name] = tuple(value) if name == "disable" and isinstance(value, list) else value
    chosen = Options(**given)
    if chosen.dump:
        _make_folder(chosen.dump)
    return chosen


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"The dump directory cannot be made: {error}.",
            where="option 'dump' or OVERLAPC_DUMP",
            remedy="name a directory that can be written to",
        ) from error


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    readers = {
        "dump": str,
        "disable": lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
        "fuel": _integer,
        "verify": _boolean,
    }
    found = {}
    for name, read in readers.items():
        variable = f"OVERLAPC_{name.upper()}"
        if environ.get(variable):
            found[name] = read(environ[variable])
    unknown = [v for v in environ if v.startswith("OVERLAPC_") and v[9:].lower() not in readers]
    if unknown:
        known = tuple(f"OVERLAPC_{name.upper()}" for name in readers)
        raise OptionError(
            f"There is no environment variable {unknown[0]}.",
            where="the environment",
            remedy=f"use one of {', '.join(known)}" + _nearest(unknown[0], known),
        )
    return found


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise OptionError(
            f"{text!r} is no whole number.", where="OVERLAPC_FUEL", remedy="give one, such as 3"
        ) from None


def _boolean(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in words:
        raise OptionError(
            f"{text!r} is neither true nor false.", where="OVERLAPC_VERIFY", remedy="give 1 or 0"
        )
    return words[text.lower()]
