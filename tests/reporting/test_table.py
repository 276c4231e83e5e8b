"""The readable report: what a person must be able to find in it."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from overlapc.reporting.folding import fold
from overlapc.reporting.report import Report
from overlapc.reporting.table import WIDTH, show, summary
from tests.reporting.examples import make_plan, make_site, written_plan


def layers(numbers, **changes):
    where = "model.layers.{}.mlp.down_proj (llama.py:175)"
    return [make_site(id=f"forward-0.{n}", where=where.format(n), **changes) for n in numbers]


def test_the_table_as_a_whole(golden):
    cut, whole = written_plan("chunked", (128, 128, 128, 96)), written_plan("serial", (480,))
    kept = "A cut would save 1 % of the time."
    refused = "The GEMM's result has another user, [mul_3]."
    sites = [
        *layers(range(4), plan=cut, calls={"chunked": 2, "serial": 1}),
        *layers([5, 7], plan=cut, graph="backward", calls={"serial": 3}),
        make_site(decision="kept", code="no_gain", reason=kept, plan=whole, where="lm_head"),
        make_site(decision="refused", code="other_user", reason=refused, where="", plan=None),
    ]
    golden(str(Report(sites)))


def test_the_text_is_plain_and_of_fixed_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = str(Report(layers(range(3))))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= WIDTH
    monkeypatch.setenv("COLUMNS", "300")
    assert str(Report(layers(range(3)))) == text


def test_a_terminal_gets_colours():
    out = io.StringIO()
    show(layers([0]), Console(file=out, force_terminal=True, color_system="standard"))
    assert "\x1b[32m" in out.getvalue()


def test_no_markup_is_read_in_the_texts_of_a_site():
    site = make_site(reason="[red]alert[/red] is a name.", where="[bold]x", shape="[b]")
    text = " ".join(str(Report([site])).split())
    assert "[red]alert[/red]" in text
    assert "[bold]x" in text
    assert "[b]" in text


def test_calls_have_a_column_where_something_ran():
    head = str(Report(layers([0]))).splitlines()[1]
    assert "calls" not in head
    head = str(Report([*layers([0]), make_site(calls={"chunked": 1})])).splitlines()[1]
    assert "calls" in head


def test_what_was_compiled_and_never_ran_says_so():
    ran, idle = make_site(calls={"chunked": 1}), make_site(graph="backward", where="idle (m.py:1)")
    others = [
        make_site(decision="kept", where="kept (m.py:2)"),
        make_site(kind="attention", plan=None, where="attention (m.py:3)"),
        *merged([4]),
    ]
    text = str(Report([ran, idle, *others]))
    (line,) = (line for line in text.splitlines() if "never" in line)
    assert "idle (m.py:1)" in line
    assert "never" not in str(Report([idle, *others]))


def test_a_report_without_sites_says_so():
    assert str(Report([])).startswith("No sites:")


def test_only_serial_is_no_success():
    text = str(Report(layers(range(3), calls={"serial": 2})))
    assert "not a success: 3 rewritten sites at model.layers.{0..2}.mlp.down_proj" in text
    assert "6 calls" in text


def test_an_overlapped_call_is_a_success():
    assert "not a success" not in str(Report(layers(range(3), calls={"serial": 2, "chunked": 1})))
    assert "not a success" not in str(Report(layers(range(3))))


def test_one_serial_site_among_overlapped_ones_is_not_hidden():
    sites = [*layers(range(3), calls={"chunked": 2}), *layers([3], calls={"serial": 2})]
    text = str(Report(sites))
    assert "not a success: 1 rewritten site at model.layers.3.mlp.down_proj" in text


def test_summary_adds_up_what_was_rewritten():
    plan = make_plan()
    kept = make_site(decision="kept", plan=make_plan("serial"))
    text = summary([*layers(range(2)), kept])
    assert text.startswith("3 sites: 2 rewritten, 1 kept, 0 refused.")
    assert f"({plan.serial_seconds / plan.predicted_seconds:.2f}x)" in text
    assert f"serial {2e3 * plan.serial_seconds:.3g} ms" in text


def test_sites_that_differ_in_a_layer_fold_into_one_row():
    (row,) = fold(layers([0, 1, 2, 3]))
    assert row.where == "model.layers.{0..3}.mlp.down_proj (llama.py:175)"


def test_gaps_in_layers_are_shown():
    (row,) = fold(layers([5, 0, 2]))
    assert row.where == "model.layers.{0,2,5}.mlp.down_proj (llama.py:175)"


def test_two_numbers_fold_side_by_side():
    sites = [make_site(where=f"blocks.{i}.experts.{j} (moe.py:9)") for i in (0, 1) for j in (0, 1)]
    assert [row.where for row in fold(sites)] == ["blocks.{0..1}.experts.{0..1} (moe.py:9)"]


def test_what_differs_elsewhere_stays_apart():
    site = make_site()
    others = [
        replace(site, where=site.where.replace("175", "176")),
        replace(site, where=site.where.replace("down", "up")),
        replace(site, graph="backward"),
        replace(site, reason="Another."),
        replace(site, plan=make_plan(m=4096)),
        replace(site, calls={"serial": 1}),
    ]
    assert len(fold([site, *others])) == 7


def test_calls_are_added_over_a_row():
    (row,) = fold(layers(range(3), calls={"chunked": 2, "serial": 1}))
    assert row.calls == {"chunked": 6, "serial": 3}
    assert row.redone_rows is None


def test_redone_rows_are_added_over_a_row_and_printed():
    """Mutants: those of the first site alone; no line where there is none."""
    sites = layers(range(3), calls={"zero": 2}, plan=None)
    counted = [
        replace(site, redone_rows=count) for site, count in zip(sites, (4, 0, 3), strict=True)
    ]
    (row,) = fold(counted)
    assert row.redone_rows == 7
    assert "7 rows redone" in str(Report(counted))
    assert "0 rows redone" in str(Report(counted[1:2]))
    assert "redone" not in str(Report(sites))


def merged(numbers):
    """Sites of layers whose collective is part of another one's."""
    sites = layers(numbers, code="merged", plan=None)
    place = "model.layers.{}.mlp.gate_proj (llama.py:164)"
    reasons = [f"It is sent at {place.format(n)}, 1.5 times as fast." for n in numbers]
    return [replace(site, reason=text) for site, text in zip(sites, reasons, strict=True)]


def test_a_removed_site_is_told_apart_from_one_that_does_not_run():
    text = str(Report([*layers([7], calls={"chunked": 2}), *merged(range(3))]))
    assert "4 sites: 4 rewritten (3 of them removed), 0 kept, 0 refused." in text
    assert "removed" in text.split("4 sites")[0]
    assert "not a success" not in text
    assert "removed" not in str(Report(layers([7])))


def test_reasons_that_differ_in_a_layer_fold():
    (row,) = fold(merged(range(4)))
    assert row.reason == (
        "It is sent at model.layers.{0..3}.mlp.gate_proj (llama.py:164), 1.5 times as fast."
    )


def test_reasons_that_differ_in_a_decimal_stay_apart():
    sites = layers(range(2), reason="1.5 times as fast.")
    assert len(fold([*sites, *layers([2], reason="1.6 times as fast.")])) == 2
