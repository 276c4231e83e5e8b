"""The command ``overlapc``: explain, plan, calibrate, report, targets, bench."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from overlapc.errors import CommandError, OverlapcError
from overlapc.planning.problem import COLLECTIVES, ITEM_BYTES, ORDERS
from overlapc.planning.schedule import SCHEDULES
from overlapc.planning.search import plan_gemm
from overlapc.planning.target import Target, stored_path
from overlapc.reporting.gantt import describe, describe_tuned
from overlapc.reporting.measured import describe_target
from overlapc.reporting.records import Report
from overlapc.reporting.saving import REPORT
from overlapc.reporting.table import WIDTH, show
from overlapc.reporting.target_table import target_table

BENCHMARKS = {
    "chains": "overlap_link",
    "plans": "plan_quality",
    "model": "end_to_end",
    "compile-time": "compile_time",
    "plot": "prediction_plot",
}
"""Modules of ``benchmarks`` by what the command calls them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after an error of ours, printed as one message."""
    chosen = _parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except Exception as error:
        ours = _our_error(error)
        if ours is None:
            raise
        lines = (f"error: {ours.what}", f"  where: {ours.where}", f"  remedy: {ours.remedy}")
        print("\n".join(lines), file=sys.stderr)
        return 2
    return 0


def _our_error(error: BaseException | None) -> OverlapcError | None:
    """The error of ours in a chain of causes: torch wraps what a backend raises."""
    while error is not None and not isinstance(error, OverlapcError):
        # torch cuts the cause off for a shorter traceback, and keeps it here.
        error = error.__cause__ or getattr(error, "inner_exception", None)
    return error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("overlapc", description="Overlaps collectives with GEMMs.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_explain(commands)
    _add_plan(commands)

    _add_calibrate(commands)

    text = "print a report that Report.save wrote"
    report = commands.add_parser("report", help=text, description=text)
    report.add_argument("directory", type=Path)
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
        help="takes nothing, returns (model, args) or (model, args, kwargs)",
    )
    explain.add_argument(
        "--world-size",
        type=_count,
        help="make a process group of so many ranks first, of which this is rank 0 and no other "
        "exists; without it the callable makes its own groups",
    )
    explain.add_argument("--target", help="name or file of the machine to plan for")
    explain.add_argument("--save", type=Path, metavar="DIRECTORY", help="write the report too")
    explain.set_defaults(run=_explain)


def _add_plan(commands: Any) -> None:
    text = "plan one GEMM and its collective for a machine; needs neither GPU nor group"
    plan = commands.add_parser("plan", help=text, description=text)
    plan.add_argument("--gemm", type=_sizes, required=True, metavar="MxNxK", help="of one rank")
    plan.add_argument("--collective", choices=COLLECTIVES, default="all_reduce")
    plan.add_argument(
        "--order",
        choices=ORDERS,
        default="",
        help="of an all-to-all, which may come after the GEMM (the default) or before it",
    )
    plan.add_argument("--world-size", type=_count, required=True)
    plan.add_argument("--dtype", choices=tuple(ITEM_BYTES), default="bfloat16")
    plan.add_argument("--target", required=True, help="name or file; see overlapc targets")
    plan.add_argument("--schedule", choices=("auto", *SCHEDULES), default="auto")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(run=_plan)


def _add_calibrate(commands: Any) -> None:
    text = "measure this machine and its process group, and store the target"
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
        help="to measure GEMMs of, beside float32, and on a GPU bfloat16",
    )
    calibrate.add_argument(
        "--chains",
        type=Path,
        metavar="REPORT",
        help="instead, run the best plans of every chain of a saved report (its directory or its "
        "report.json), and let the group's target remember which won; without a stored target the "
        "group is measured first",
    )
    calibrate.add_argument(
        "--linear",
        metavar="MODULE:CALLABLE",
        help="instead, in one process, measure the linear layers of the model that it returns, as "
        "for explain, at 1 to 64 rows, and let this machine's table remember which implementation "
        "beats the library where",
    )
    calibrate.add_argument(
        "--attention",
        metavar="MODULE:CALLABLE",
        help="instead, in one process, measure the attentions of that model over 512 to 128k keys, "
        "and let this machine's table remember where a kernel of ours beats torch's",
    )
    calibrate.add_argument(
        "--softmax",
        metavar="MODULE:CALLABLE",
        help="instead, in one process, call the model that it returns with the batches that it "
        "returns beside it (a tuple of inputs, or a list of tuples, dicts of named inputs or "
        "tensors, one for each call), and remember a number for each head of its attentions that "
        "softmax='unified' takes scores relative to",
    )
    calibrate.set_defaults(run=_calibrate)


def _add_bench(commands: Any) -> None:
    text = "run a benchmark of a checkout, in its root"
    bench = commands.add_parser("bench", help=text, description=text)
    bench.add_argument("benchmark", choices=tuple(BENCHMARKS))
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="--help lists them")
    bench.set_defaults(run=_bench)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of ranks")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def _sizes(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not MxNxK, such as 8192x8192x3584")
    m, n, k = map(int, parts)
    return m, n, k


def _explain(chosen: argparse.Namespace) -> None:
    # The console script has its own folder on the path, not the user's.
    sys.path.insert(0, "")
    from overlapc.explaining import explain

    if chosen.world_size:
        _make_fake_group(chosen.world_size)
    model, args, kwargs = _model_and_inputs(chosen.callable)
    options = {"target": chosen.target} if chosen.target else None
    report = explain(model, options)(*args, **kwargs)
    if chosen.save:
        report.save(chosen.save)
    _print_report(report)


def _make_fake_group(world_size: int) -> None:
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)


def _returned(name: str) -> Any:
    """Call what ``MODULE:CALLABLE`` names; its own exceptions pass through."""
    function = _load(name)
    try:
        inspect.signature(function).bind()
    except ValueError:  # a builtin that does not tell what it takes
        pass
    except TypeError as error:
        raise CommandError(
            f"It cannot be called without arguments: {error}.",
            where=name,
            remedy="give a callable that takes nothing and returns (model, args)",
        ) from error
    return function()


def _model_and_inputs(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What ``MODULE:CALLABLE`` returns, for one call."""
    match _returned(name):
        case (model, tuple() | list() as args):
            return model, tuple(args), {}
        case (model, tuple() | list() as args, dict() as kwargs):
            return model, tuple(args), kwargs
        case other:
            raise CommandError(
                f"It returned {type(other).__name__}, not (model, args) or (model, args, kwargs).",
                where=name,
                remedy="return the model, a tuple of its inputs and, if needed, a dict of them",
            )


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    remedy = "give MODULE:CALLABLE, importable from the current folder"
    if not module or not attribute:
        raise CommandError(f"{name!r} is not MODULE:CALLABLE.", where="explain", remedy=remedy)
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        # A module that is there but lacks one of its own imports is the user's to see in full.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise CommandError(f"There is no module {module!r}.", where=name, remedy=remedy) from error
    found = getattr(loaded, attribute, None)
    if not callable(found):
        raise CommandError(
            f"Module {module!r} has no callable {attribute!r}.", where=name, remedy=remedy
        )
    return found


def _plan(chosen: argparse.Namespace) -> None:
    m, n, k = chosen.gemm
    plan = plan_gemm(
        m=m,
        n=n,
        k=k,
        collective=chosen.collective,
        world_size=chosen.world_size,
        dtype=chosen.dtype,
        target=chosen.target,
        schedule=chosen.schedule,
        order=chosen.order,
    )
    print(plan.to_json() if chosen.json else describe(plan))


def _calibrate_linears(chosen: argparse.Namespace) -> None:
    sys.path.insert(0, "")  # as for explain
    from overlapc.linear_tuning import calibrate_linears, describe, layers_of
    from overlapc.planning.linear_table import table_path

    layers = layers_of(*_model_and_inputs(chosen.linear))
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)
        table = calibrate_linears(
            layers,
            seconds=chosen.seconds,
            progress=lambda stage, done: bar.update(task, description=stage, completed=done),
        )
    measured = {layer.problem for layer in layers}
    print(f"stored in {table_path(table.machine)} for {table.machine}")
    for entry in table.entries:
        if entry.problem in measured:
            print(describe(entry))


def _calibrate_attentions(chosen: argparse.Namespace) -> None:
    sys.path.insert(0, "")  # as for explain
    from overlapc.attention_tuning import calibrate_attentions, describe, shapes_of

    shapes = shapes_of(*_model_and_inputs(chosen.attention))
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)
        table = calibrate_attentions(
            shapes,
            seconds=chosen.seconds,
            progress=lambda stage, done: bar.update(task, description=stage, completed=done),
        )
    print(f"stored in {table.path(table.machine)} for {table.machine}")
    for entry in table.entries:
        if entry.problem in shapes:
            print(describe(entry))


def _calibrate_softmax(chosen: argparse.Namespace) -> None:
    sys.path.insert(0, "")  # as for explain
    from overlapc.planning.softmax_table import table_path
    from overlapc.softmax_tuning import batches_of, calibrate_softmax, describe

    match _returned(chosen.softmax):
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
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)
        tables = calibrate_softmax(
            model,
            batches,
            progress=lambda stage, done: bar.update(task, description=stage, completed=done),
        )
    for table in tables:
        for graph in table.graphs:
            print(f"stored in {table_path(table.structure)} for weights {graph.weights}")
            for site in graph.sites:
                print(describe(site))


INSTEAD = {
    "linear": _calibrate_linears,
    "attention": _calibrate_attentions,
    "softmax": _calibrate_softmax,
}
"""What is calibrated in place of the group's target, by option."""


def _calibrate(chosen: argparse.Namespace) -> None:
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
            "overlapc calibrate, or call overlapc.calibrate(group) in your own program",
        )
    # A report that cannot be read is an error before anything is measured.
    report = Report.load(_directory(chosen.chains)) if chosen.chains else None
    if torch.cuda.is_available():
        torch.cuda.set_device(get_node_local_rank())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    is_first = dist.get_rank() == 0
    try:
        with Progress(transient=True, console=Console(stderr=True), disable=not is_first) as bar:
            task = bar.add_task("", total=1.0)

            def tell(stage: str, done: float) -> None:
                bar.update(task, description=stage, completed=done)

            target = _measured(chosen, report, tell)
        if is_first:
            print(f"{target.name} ({target.fingerprint}) is stored in {stored_path(target.name)}")
            print(f"  the same on all {dist.get_world_size()} ranks, of the slowest one's times")
            print(describe_target(target))
            for tuned in target.tuned if report else ():
                print(f"  {describe_tuned(tuned)}")
    finally:
        dist.destroy_process_group()


def _directory(path: Path) -> Path:
    return path.parent if path.name == REPORT else path


def _measured(
    chosen: argparse.Namespace, report: Report | None, tell: Callable[[str, float], None]
) -> Target:
    """The group's target: measured, or with the chains of a report tuned."""
    from overlapc.calibration import calibrate, stored_target
    from overlapc.tuning import tune_chains

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


def _bench(chosen: argparse.Namespace) -> None:
    # The console script has its own folder on the path, not the user's.
    sys.path.insert(0, "")
    name = f"benchmarks.{BENCHMARKS[chosen.benchmark]}"
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", name):
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
        show(report, Console())
    else:
        print(report, end="")


if __name__ == "__main__":
    sys.exit(main())
