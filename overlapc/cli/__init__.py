"""The command ``overlapc``: explain, plan, calibrate, report, targets, bench."""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from overlapc.cli.calibrate import add_calibrate
from overlapc.cli.callables import import_here, model_and_inputs
from overlapc.cli.groups import asking_for_a_group, make_fake_group
from overlapc.cli.plan import add_plan, count
from overlapc.errors import CommandError, OverlapcError
from overlapc.options import from_user
from overlapc.reporting.report import Report
from overlapc.reporting.table import WIDTH, show
from overlapc.reporting.target_table import target_table

BENCHMARKS = {
    "chains": "overlap_link.__main__",
    "plans": "plan_quality.__main__",
    "model": "end_to_end.__main__",
    "compile-time": "compile_time",
    "plot": "overlap_link.prediction_plot",
}
"""Modules of ``benchmarks`` by what the command calls them."""

STDOUT = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after an error of ours, printed as one message."""
    chosen = _parser().parse_args(arguments)
    try:
        from_user(None)  # what is misspelled in the environment is an error of every command
        chosen.run(chosen)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _has_read_enough():
            raise
    except Exception as error:
        ours = _our_error(error)
        if ours is None:
            raise
        lines = (f"error: {ours.what}", f"  where: {ours.where}", f"  remedy: {ours.remedy}")
        print("\n".join(lines), file=sys.stderr)
        return 2
    return 0


def _has_read_enough() -> bool:
    """Whether nobody reads our output any more, as after ``head``: what is left goes nowhere."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # for the flush at exit
    return True


def _our_error(error: BaseException | None) -> OverlapcError | None:
    """The error of ours in a chain of causes: torch wraps what a backend raises."""
    while error is not None and not isinstance(error, OverlapcError):
        # torch cuts the cause off for a shorter traceback, and keeps it here.
        error = error.__cause__ or getattr(error, "inner_exception", None)
    return error


def _parser() -> argparse.ArgumentParser:
    what = "Says what the torch.compile backend does and why, plans without a GPU, and measures."
    parser = argparse.ArgumentParser("overlapc", description=what)
    parser.add_argument("--version", action="version", version=f"overlapc {version('overlapc')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_explain(commands)
    add_plan(commands)
    add_calibrate(commands)

    text = "print a report that Report.save wrote"
    report = commands.add_parser("report", help=text, description=text)
    report.add_argument("directory", type=Path, help="that it was saved to, or its report.json")
    report.set_defaults(run=lambda chosen: _print_report(Report.load(chosen.directory)))

    _add_bench(commands)

    text = "list the targets that can be named: shipped and stored"
    commands.add_parser("targets", help=text, description=text).set_defaults(run=_targets)
    return parser


def _add_explain(commands: Any) -> None:
    text = "say of every site of a model what would be done and why"
    explain = commands.add_parser("explain", help=text, description=text)
    explain.add_argument(
        "callable",
        metavar="MODULE:CALLABLE",
        help="takes nothing, returns (model, args) or (model, args, kwargs); of a list of calls, "
        "as calibrate --softmax takes it, the first is explained",
    )
    explain.add_argument(
        "--world-size",
        type=count,
        help="make a process group of so many ranks first, of which this is rank 0 and no other "
        "exists; without it the callable makes its own groups",
    )
    explain.add_argument("--target", help="name or file of the machine to plan for")
    explain.add_argument(
        "--dynamic",
        action="store_true",
        help="let sizes vary, as torch.compile(dynamic=True): the report says from which number of "
        "rows on the schedule changes",
    )
    explain.add_argument(
        "--inference",
        action="store_true",
        help="call the model without gradients, as under torch.no_grad(): a model in eval mode is "
        "explained as for training, with its backward, where its parameters require gradients",
    )
    explain.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one of the backend's options, such as overlap=chunked; may be given several times",
    )
    explain.add_argument("--save", type=Path, metavar="DIRECTORY", help="write the report too")
    explain.set_defaults(run=_explain)


def _add_bench(commands: Any) -> None:
    text = "run a benchmark of a checkout, in its root"
    bench = commands.add_parser("bench", help=text, description=text)
    bench.add_argument("benchmark", choices=tuple(BENCHMARKS))
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="--help lists them")
    bench.set_defaults(run=_bench)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as overlap=chunked")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # text needs no quotes


def _explain(chosen: argparse.Namespace) -> None:
    import torch

    from overlapc.explaining import explain

    if chosen.world_size:
        make_fake_group(chosen.world_size)
    options = dict(chosen.option) | ({"target": chosen.target} if chosen.target else {})
    with asking_for_a_group(chosen.callable):
        model, args, kwargs = model_and_inputs(chosen.callable)
        with torch.set_grad_enabled(not chosen.inference):
            report = explain(model, options, dynamic=chosen.dynamic or None)(*args, **kwargs)
    if chosen.save:
        report.save(chosen.save)
    _print_report(report)


def _bench(chosen: argparse.Namespace) -> None:
    name = f"benchmarks.{BENCHMARKS[chosen.benchmark]}"
    try:
        module = import_here(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        raise CommandError(
            "The benchmarks are not here: they are part of a checkout, not of the package.",
            where=f"overlapc bench {chosen.benchmark}",
            remedy="run it in the root of a clone of overlapc",
        ) from error
    # Without root, a benchmark starts itself again, by its own name and with these arguments.
    sys.argv = [name, *chosen.arguments]
    if status := module.main():
        sys.exit(status)


def _targets(chosen: argparse.Namespace) -> None:
    Console(width=None if sys.stdout.isatty() else WIDTH).print(target_table())


def _print_report(report: Report) -> None:
    if sys.stdout.isatty():
        show(report.sites, Console())
    else:
        print(report, end="")
