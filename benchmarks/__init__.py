"""Measurements of overlapc, run from the repository root with ``python -m benchmarks.NAME``.

A file is a benchmark, and so is a folder with a ``__main__.py`` beside its parts: ``overlap_link``,
``plan_quality``, ``end_to_end``, ``linear`` and ``gpu``. Two folders serve all of them:
``measuring`` (paired rounds, budgets of time, pages of results) and ``processes`` (ranks on one
machine, and emulated links between them). What was measured lies in ``results``.
"""
