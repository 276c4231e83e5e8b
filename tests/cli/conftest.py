"""A user's module, and the installed command beside it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.commands import COMMAND

MODEL = """
import torch
import torch.distributed as dist


class RowParallel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(3584, 8192, bias=False, dtype=torch.bfloat16, device="meta")

    def forward(self, x):
        y = self.proj(x)
        dist.all_reduce(y)
        return y


def build():
    assert dist.get_world_size() == 8
    return RowParallel(), (torch.empty(8192, 3584, dtype=torch.bfloat16, device="meta"),)


def with_keywords():
    return sum, (1, 2), {"c": 3}


def plain():
    return torch.nn.Linear(4, 4), [torch.randn(2, 4)]


def calls():
    return scaled, [{"x": torch.ones(2), "by": 3}, {"x": torch.ones(5), "by": 3}]


def positional_calls():
    return scaled, [(torch.ones(2), 3), {"x": torch.ones(2), "by": 3}]


def tensors():
    return scaled, [torch.ones(2), torch.ones(2)]


def reduced():
    def model(x):
        y = x @ x
        dist.all_reduce(y)
        return y

    return model, (torch.ones(2, 2),)


def asks_early():
    dist.get_world_size()


def makes_one_wrongly():
    dist.init_process_group("gloo")


def its_own_mistake():
    raise ValueError("the user's own mistake")


def a_dict_that_is_an_input():
    return scaled, ({"x": 1}, 3)


def no_model():
    return 3, (torch.ones(2),)


def scaled(x, by):
    return x * by


def in_eval():
    return Attention().eval(), (torch.randn(1, 2, 64, 16),)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(16, 16)

    def forward(self, x):
        q = self.proj(x)
        return (q @ q.mT).softmax(-1) @ q


def broken():
    raise KeyError("the user's own mistake")


def nothing():
    return None


number = 3
"""


@pytest.fixture
def run(tmp_path):
    """Run the installed command beside a module ``model`` and return what it did."""
    (tmp_path / "model.py").write_text(MODEL)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def call(*arguments: str, command: str = str(COMMAND)) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=110,
        )

    return call


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The same module under a name that no other test has imported."""
    name = f"model_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name
