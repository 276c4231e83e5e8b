"""What the op of a chain is told beside its tensors."""

from __future__ import annotations

from overlapc.codegen.module import module_text
from overlapc.errors import KernelError
from overlapc.graphs.chains.chain import Chain, meta_operands
from overlapc.graphs.chains.readers import takes_map
from overlapc.graphs.origins import place_of
from overlapc.passes.base import Compilation
from overlapc.planning.problem import TILES
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target
from overlapc.planning.tiles import Tile
from overlapc.runtime.signaled.kernels import kernel_spec_of
from overlapc.runtime.spec import ChainSpec


def specification(
    chain: Chain,
    target: Target,
    compilation: Compilation,
    site: str,
    packed: Tile | None = None,
) -> ChainSpec:
    """Return what the inserted op has to know beside its tensors."""
    options = compilation.options
    return ChainSpec(
        kind=chain.kind,
        target=target.fingerprint,
        options=compilation.choices,
        schedule=options.overlap,
        reduce=chain.collective.reduce,
        site=site,
        verify=options.verify,
        wait_seconds=options.agreement_seconds,
        place=place_of(chain.gemms[0].node),
        axis=chain.axis,
        program=chain.program,
        takes_map=takes_map(chain),
        inductor=compilation.settings,
        packed=packed,
    )


def packed_tile(plan: Plan | None) -> Tile | None:
    """Return the tiles that readers of a plan's result read; None where they read rows."""
    return plan.tile if plan and plan.by == TILES and len(plan.rows) > 1 else None


def generated_module(chain: Chain, spec: ChainSpec, target: Target, tile: Tile | None) -> str:
    """Return the text of the Triton module that a signaled plan of this chain runs."""
    try:
        return module_text(kernel_spec_of(spec, target, meta_operands(chain), tile)[0])
    except KernelError as error:
        return f'"""No module is generated, and the library computes the bands.\n\n{error}\n"""\n'
