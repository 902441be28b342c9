"""A numba pipeline for loops over elements: pointers that never overlap, the widest vectors, several of them at a time.

numba's own pipeline leaves these three to LLVM's guess. It cannot know that two addresses never overlap, prefers
256-bit vectors where the CPU has 512, and works on one vector after the other. A Normal factor is a chain of some forty
dependent operations, so that one vector at a time leaves the CPU waiting.
"""

from __future__ import annotations

import contextlib

from llvmlite import ir
from numba import njit
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import NativeLowering

# How many vectors a loop works on at a time.
INTERLEAVED = 4


class _HintingLower(Lower):
    """Translates a function to LLVM's language, with hints for the vectoriser."""

    def post_lower(self):
        """Marks the function and the jumps back to the head of its loops."""
        super().post_lower()
        # llvmlite does not know this attribute's name, but its set of attributes is a set. Were it not: no attribute.
        with contextlib.suppress(TypeError):
            set.add(self.function.attributes, '"prefer-vector-width"="512"')
        seen = set()
        for block in self.function.blocks:
            seen.add(block)
            end = block.terminator
            if end is not None and any(target in seen for target in end.operands):
                end.set_metadata("llvm.loop", self._interleaving())

    def _interleaving(self):
        """The identity of a loop, which is a node that refers to itself, with the wish attached."""
        wish = self.module.add_metadata(["llvm.loop.interleave.count", ir.Constant(ir.IntType(32), INTERLEAVED)])
        loop = self.module.add_metadata([wish])
        loop.operands = (loop, wish)
        return loop


@register_pass(mutates_CFG=True, analysis_only=False)
class _HintingLowering(NativeLowering):
    """Numba's pass that translates, with ours in the place of its translator."""

    _name = "flatwise_hinting_lowering"

    @property
    def lowering_class(self):
        """The translator."""
        return _HintingLower


class _Vectorized(CompilerBase):
    def define_pipelines(self):
        """Numba's own pipeline with that one pass replaced."""
        self.state.flags.noalias = True
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [(_HintingLowering if one is NativeLowering else one, why) for one, why in pipeline.passes]
        pipeline.finalize()
        return [pipeline]


# The decorator. numba's default error model would test every division.
loop = njit(pipeline_class=_Vectorized, forceinline=True, error_model="numpy")
