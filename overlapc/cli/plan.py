"""``overlapc plan``: what the planner says of one GEMM, or of one linear layer of few rows."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from overlapc.errors import CommandError, TargetError
from overlapc.planning.linear.prediction import predict
from overlapc.planning.linear.regions import BYTES, LinearProblem
from overlapc.planning.problem import COLLECTIVES, ITEM_BYTES, ORDERS
from overlapc.planning.records import to_value
from overlapc.planning.schedule import SCHEDULES
from overlapc.planning.search import plan_gemm
from overlapc.planning.target import Target
from overlapc.reporting.gantt import describe
from overlapc.reporting.linears import describe_prediction

OPTIONS_OF = {
    "gemm": ("collective", "order", "world_size", "schedule"),
    "linear": ("epilogue", "held"),
}
"""What is of one kind of plan alone; all are None where they are not given."""


def add_plan(commands: Any) -> None:
    """Add the command ``plan`` to the subparsers of ``overlapc``."""
    text = "plan one GEMM and its collective, or a linear layer of few rows, for a machine; needs "
    text += "neither GPU nor group"
    plan = commands.add_parser("plan", help=text, description=text)
    what = plan.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--gemm",
        type=_sizes,
        metavar="MxNxK",
        help="of one rank; after an all-gather or all-to-all, M counts what has come",
    )
    what.add_argument(
        "--linear",
        type=_layer,
        metavar="NxK",
        help="predict for a layer with a weight [N, K], up to which number of rows each "
        "implementation is fastest; 2xNxK of gate and up, N+N+NxK of layers of the same rows",
    )
    plan.add_argument(
        "--collective",
        choices=COLLECTIVES,
        help="of --gemm: after it, an all-gather before it (default: all_reduce)",
    )
    plan.add_argument(
        "--order",
        choices=ORDERS,
        help="of --gemm: where an all-to-all comes, after it (the default) or before it",
    )
    plan.add_argument("--world-size", type=count, help="ranks of the group, of --gemm")
    plan.add_argument(
        "--dtype",
        choices=tuple(ITEM_BYTES),
        default="bfloat16",
        help="of the GEMM (default: bfloat16)",
    )
    plan.add_argument(
        "--epilogue",
        type=_ops,
        metavar="OPS",
        help="of --linear: names of the ops after the GEMM, such as 'silu mul'",
    )
    plan.add_argument("--held", choices=tuple(BYTES), help="of --linear: the weight's own dtype")
    plan.add_argument("--target", required=True, help="name or file; see overlapc targets")
    plan.add_argument(
        "--schedule",
        choices=("auto", *SCHEDULES),
        help="of --gemm: the best of its kind, or the best of all (default: auto)",
    )
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(run=_plan)


def count(text: str) -> int:
    """A number of ranks."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of ranks")
    return int(text)


def _sizes(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not MxNxK, such as 8192x8192x3584")
    m, n, k = map(int, parts)
    return m, n, k


def _layer(text: str) -> LinearProblem:
    """As `LinearProblem.text` spells sizes; the dtype is still to come."""
    *times, columns, k = ("", *text.split("x"))
    weights, sizes = "".join(times) or "1", columns.split("+")
    if len(times) > 2 or not all(part.isdecimal() and int(part) for part in (*sizes, weights, k)):
        raise argparse.ArgumentTypeError(f"{text!r} is not NxK, such as 4096x14336")
    n, *more = map(int, sizes)
    return LinearProblem(n, int(k), "", weights=int(weights), more=tuple(more))


def _ops(text: str) -> str:
    """As `LinearProblem.epilogue` spells ops: those that a kernel can compute after its GEMM."""
    from overlapc.codegen.pointwise import CASTS, RULES  # read for this option alone

    known = sorted({name.split(".")[1] for name in (*RULES, *CASTS)})
    if unknown := [op for op in text.split() if op not in known]:
        said = f"no kernel computes {' and '.join(map(repr, unknown))} after a GEMM"
        raise argparse.ArgumentTypeError(f"{said}; those that are computed: {', '.join(known)}")
    return " ".join(text.split())


def _plan(chosen: argparse.Namespace) -> None:
    _refuse_others(chosen, "gemm" if chosen.linear else "linear")
    if chosen.linear:
        _plan_linear(chosen)
        return
    if not chosen.world_size:
        raise CommandError(
            "A GEMM is planned for a number of ranks, and none is given.",
            where="overlapc plan --gemm",
            remedy="give --world-size",
        )
    m, n, k = chosen.gemm
    plan = plan_gemm(
        m=m,
        n=n,
        k=k,
        collective=chosen.collective or "all_reduce",
        world_size=chosen.world_size,
        dtype=chosen.dtype,
        target=chosen.target,
        schedule=chosen.schedule or "auto",
        order=chosen.order or "",
    )
    print(plan.to_json() if chosen.json else describe(plan))


def _refuse_others(chosen: argparse.Namespace, other: str) -> None:
    """Options of the other kind would change nothing."""
    given = [name for name in OPTIONS_OF[other] if getattr(chosen, name) is not None]
    if given:
        named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise CommandError(
            f"{named} would change nothing here.",
            where="overlapc plan --" + ("linear" if other == "gemm" else "gemm"),
            remedy=f"leave that out, or plan --{other}",
        )


def _unpredictable(target: Target, dtype: str) -> TargetError:
    """Why nothing is predicted of a linear layer."""
    where = f"target {target.name} ({target.fingerprint})"
    if not target.architecture:
        return TargetError(
            "Linear layers of few rows are predicted for GPUs, and this target is of none.",
            where=where,
            remedy="give a GPU's, such as h100-nvlink; for this machine's processor "
            "overlapc calibrate --linear measures them",
        )
    rates = {name: target.rates_of(name) for name in ("float32", dtype)}
    missing = [f"{name} is multiplied" for name, known in rates.items() if known is None]
    return TargetError(
        f"The target does not say how fast {' and '.join(missing) or 'memory is read'}.",
        where=where,
        remedy="give one of the dtypes that overlapc targets lists for it, or another target",
    )


def _plan_linear(chosen: argparse.Namespace) -> None:
    target = Target.load(chosen.target)
    held = "" if chosen.held in (None, chosen.dtype) else chosen.held
    epilogue = chosen.epilogue or ""
    problem = replace(chosen.linear, dtype=chosen.dtype, held=held, epilogue=epilogue)
    prediction = predict(problem, target)
    if prediction is None:
        raise _unpredictable(target, chosen.dtype)
    if chosen.json:
        print(json.dumps(to_value(prediction), indent=1))
    else:
        print(describe_prediction(problem, prediction))
