"""Where a site says that it stands, however the model came to the function that is compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import overlapc


class Attending(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.transpose(-1, -2)).softmax(-1) @ x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attending()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


MODEL = Model()


def of_a_local(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x)


def of_a_global(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return MODEL(x)


def of_arguments(*args: torch.Tensor) -> torch.Tensor:
    return args[0](args[1])


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (of_a_local, "model.layers.0"),
        (of_a_global, "MODEL.layers.0"),
        (of_arguments, "layers.0"),
    ],
)
def test_a_site_is_named_as_its_model_names_it(call: Callable[..., torch.Tensor], where: str):
    """torch 2.14 hands a model of a tensor-parallel plan on by ``args``.

    Mutants: the letters that Dynamo has for locals and globals stay, ``args[0]`` stays.
    """
    report = overlapc.explain(call)(MODEL, torch.randn(1, 2, 512, 64))
    assert [site.where.split()[0] for site in report.sites] == [where]


def test_the_model_itself_has_no_name():
    report = overlapc.explain(MODEL)(torch.randn(1, 2, 512, 64))
    assert [site.where.split()[0] for site in report.sites] == ["layers.0"]


class Exported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mod, self.G = Attending(), Attending()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.G(self.mod(x))


def test_what_was_exported_keeps_the_names_of_its_modules():
    """Mutant: one that is called as Dynamo calls a local or a global loses its name."""
    x = torch.randn(1, 2, 512, 64)
    report = overlapc.explain(torch.export.export(Exported(), (x,)).module())(x)
    assert [site.where.split()[0] for site in report.sites] == ["mod", "G"]
