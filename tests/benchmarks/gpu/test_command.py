"""What ``python -m benchmarks.gpu`` says where nothing can be measured."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.gpu import __main__ as command


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys):
    assert command.main(["gemm"]) == 2
    assert capsys.readouterr().err == (
        "nothing measured: torch.cuda.is_available() is false here\n"
    )


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_a_python_that_lacks_what_is_measured_says_so(name, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    assert command.main(["gemm"]) == 2
    assert f"nothing measured: {sys.executable} cannot import {name}: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["sorting"], ["gemm", "--minutes", "nine"]], ids=str)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(SystemExit):
        command.main(arguments)
