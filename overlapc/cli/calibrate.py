"""``overlapc calibrate``: what it measures, how it shows that it goes on, and what it stored."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from overlapc.cli.callables import model_and_inputs, returned
from overlapc.errors import CommandError
from overlapc.planning.problem import COLLECTIVES
from overlapc.planning.target import Target, stored_path
from overlapc.reporting.gantt import describe_tuned
from overlapc.reporting.linears import MEASURED_LEGEND, PACKED, describe_entry
from overlapc.reporting.measured import describe_target
from overlapc.reporting.report import Report

Tell = Callable[[str, float], None]
"""Called with the stage and the part that is done, of one, as a measurement goes on."""


def add_calibrate(commands: Any) -> None:
    """Add the command ``calibrate`` to the subparsers of ``overlapc``."""
    text = (
        "measure this machine and its process group, and store the target; or the linear layers, "
        "the attentions or the attention scores of a model"
    )
    calibrate = commands.add_parser("calibrate", help=text, description=text)
    calibrate.add_argument("--seconds", type=_seconds, default=40.0, help="to measure for, about")
    calibrate.add_argument(
        "--collectives",
        nargs="+",
        choices=COLLECTIVES,
        default=COLLECTIVES,
        metavar="NAME",
        help=f"to measure, some of {', '.join(COLLECTIVES)} (default: all)",
    )
    calibrate.add_argument(
        "--dtypes",
        nargs="+",
        default=(),
        metavar="DTYPE",
        help="to measure GEMMs of, beside float32, and on a GPU bfloat16 and float8_e4m3fn",
    )
    instead = calibrate.add_mutually_exclusive_group()
    instead.add_argument(
        "--chains",
        type=Path,
        metavar="REPORT",
        help="instead, run the best plans of every chain of a saved report (its directory or its "
        "report.json), and let the group's target remember which won; without a stored target the "
        "group is measured first",
    )
    instead.add_argument(
        "--linear",
        metavar="MODULE:CALLABLE",
        help="instead, in one process, measure the linear layers of the model that it returns, as "
        "for explain, at 1 to 64 rows, and let this machine's table remember which implementation "
        "beats the library where",
    )
    instead.add_argument(
        "--attention",
        metavar="MODULE:CALLABLE",
        help="instead, in one process, measure the attentions of that model over 512 to 128k keys, "
        "and let this machine's table remember where a kernel of ours beats torch's",
    )
    instead.add_argument(
        "--softmax",
        metavar="MODULE:CALLABLE",
        help="instead, in one process, call the model that it returns with the batches that it "
        "returns beside it (a tuple of inputs, or a list of tuples, dicts of named inputs or "
        "tensors, one for each call), and remember a number for each head of its attentions that "
        "softmax='unified' takes scores relative to",
    )
    calibrate.add_argument(
        "--training",
        action="store_true",
        help="with --linear or --attention: of the graphs that training compiles, forward and "
        "backward, not of those of inference",
    )
    calibrate.set_defaults(run=_calibrate)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


@contextmanager
def _progress_bar(is_shown: bool = True) -> Iterator[Tell]:
    with Progress(transient=True, console=Console(stderr=True), disable=not is_shown) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda stage, done: bar.update(task, description=stage, completed=done)


def _calibrate_linears(chosen: argparse.Namespace) -> None:
    import torch

    from overlapc.tuning.linear import calibrate_linears, layers_of

    model = model_and_inputs(chosen.linear)
    with torch.set_grad_enabled(chosen.training):
        layers = layers_of(*model, varying=True)
    with _progress_bar() as tell:
        table = calibrate_linears(layers, seconds=chosen.seconds, progress=tell)
    measured = {layer.problem for layer in layers}
    print(f"stored in {table.path(table.machine)} for {table.machine}")
    for entry in table.entries:
        if entry.problem in measured:
            print(describe_entry(entry))
    print(MEASURED_LEGEND)
    if table.machine.device == "cpu":
        print(PACKED)


def _calibrate_attentions(chosen: argparse.Namespace) -> None:
    import torch

    from overlapc.tuning.attention import calibrate_attentions, describe, shapes_of

    model = model_and_inputs(chosen.attention)
    with torch.set_grad_enabled(chosen.training):
        shapes = shapes_of(*model)
    with _progress_bar() as tell:
        table = calibrate_attentions(shapes, seconds=chosen.seconds, progress=tell)
    print(f"stored in {table.path(table.machine)} for {table.machine}")
    for entry in table.entries:
        if entry.problem in shapes:
            print(describe(entry))


def _calibrate_softmax(chosen: argparse.Namespace) -> None:
    from overlapc.planning.attention.softmax import LEGEND, NO_KERNEL
    from overlapc.planning.attention.softmax_table import table_path
    from overlapc.tuning.softmax import batches_of, calibrate_softmax, describe, takes_phi

    match returned(chosen.softmax):
        case (model, inputs):
            batches = batches_of(inputs)
        case (model, tuple() | list() as args, dict() as kwargs):
            batches = [(tuple(args), kwargs)]
        case other:
            raise CommandError(
                f"It returned {type(other).__name__}, not (model, batches).",
                where=chosen.softmax,
                remedy="return the model, and a tuple of inputs or a list of one for each call",
            )
    with _progress_bar() as tell:
        tables = calibrate_softmax(model, batches, progress=tell)
    for table in tables:
        for graph in table.graphs:
            print(f"stored in {table_path(table.structure)} for weights {graph.weights}")
            for site in graph.sites:
                print(describe(site))
    if not takes_phi():
        print(NO_KERNEL)
    print(LEGEND)


INSTEAD = {
    "linear": _calibrate_linears,
    "attention": _calibrate_attentions,
    "softmax": _calibrate_softmax,
}
"""What is calibrated in place of the group's target, by option."""


def _calibrate(chosen: argparse.Namespace) -> None:
    if chosen.training and not (chosen.linear or chosen.attention):
        raise CommandError(
            "Option --training says which graphs of a model are measured, and none is.",
            where="overlapc calibrate",
            remedy="give it with --linear or --attention",
        )
    for name, run in INSTEAD.items():
        if getattr(chosen, name):
            run(chosen)
            return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import get_node_local_rank

    if not dist.is_torchelastic_launched():
        raise CommandError(
            "There is no process group to measure: this is a single process.",
            where="overlapc calibrate",
            remedy="start one process a rank: torchrun --nproc-per-node=N --no-python "
            "overlapc calibrate, with the same options, or call overlapc.calibrate(group) in your "
            "own program",
        )
    # A report that cannot be read is an error before anything is measured.
    report = Report.load(chosen.chains) if chosen.chains else None
    if torch.cuda.is_available():
        torch.cuda.set_device(get_node_local_rank())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    is_first = dist.get_rank() == 0
    try:
        with _progress_bar(is_shown=is_first) as tell:
            target = _measured(chosen, report, tell)
        if is_first:
            print(f"{target.name} ({target.fingerprint}) is stored in {stored_path(target.name)}")
            print(f"  the same on all {dist.get_world_size()} ranks, of the slowest one's times")
            print(describe_target(target))
            for tuned in target.tuned if report else ():
                print(f"  {describe_tuned(tuned)}")
    finally:
        dist.destroy_process_group()


def _measured(chosen: argparse.Namespace, report: Report | None, tell: Tell) -> Target:
    """The group's target: measured, or with the chains of a report tuned."""
    from overlapc.calibration import calibrate, stored_target
    from overlapc.tuning.chains import tune_chains

    target = stored_target() if report else None
    if target is None:
        target = calibrate(
            collectives=chosen.collectives,
            dtypes=chosen.dtypes,
            seconds=chosen.seconds,
            progress=tell,
        )
    if report is None:
        return target
    return tune_chains(report, target=target, seconds=chosen.seconds, progress=tell)
