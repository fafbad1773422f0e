"""What a program does is counted as often as it runs, and as XLA itself counts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tools.plan import hlo

# As libtpu writes: a loop whose trips only its condition tells, which begins at 2; an
# all-gather that goes on over several fusions; a reduce-scatter that is a fusion.
TPU = """\
HloModule jit_step, is_scheduled=true

%start (p: bf16[1,8]) -> bf16[4,8] {
  %p = bf16[1,8]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.1 = bf16[4,8]{1,0:T(8,128)} all-gather(%p), channel_id=7, \
replica_groups=mesh['a'=4] {'a'}, dimensions={0}, metadata={op_name="jit(f)/dot"}
  ROOT %begun = (bf16[1,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}) custom-call(%gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%done (p.1: bf16[1,8]) -> bf16[4,8] {
  %p.1 = bf16[1,8]{1,0} parameter(0)
  %gather.2 = bf16[4,8]{1,0} all-gather(%p.1), channel_id=7, \
replica_groups=mesh['a'=4] {'a'}, dimensions={0}
  ROOT %ended = bf16[4,8]{1,0} custom-call(%gather.2), \
custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.5 (q: f32[16]) -> f32[4] {
  %q = f32[16]{0} parameter(0)
  %sum = f32[16]{0} all-reduce(%q), channel_id=9, replica_groups={{0,1,2,3}}, \
to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %part = f32[4]{0} dynamic-slice(%sum, %zero), dynamic_slice_sizes={4}
}

%body (s: (s32[], bf16[1,8])) -> (s32[], bf16[1,8]) {
  %s = (s32[], bf16[1,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %x = bf16[1,8]{1,0} get-tuple-element(%s), index=1
  %f.1 = bf16[4,8]{1,0} fusion(%x), kind=kCustom, calls=%start, \
backend_config={"estimated_cycles":"100"}
  %f.2 = bf16[4,8]{1,0} fusion(%x), kind=kCustom, calls=%done
  %k = bf16[1,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  %sent = (bf16[1,8]{1,0}, bf16[1,8]{1,0}, u32[], u32[]) collective-permute-start(%x), \
channel_id=3, source_target_pairs={{0,1},{1,0}}
  %got = bf16[1,8]{1,0} collective-permute-done(%sent)
  ROOT %out = (s32[], bf16[1,8]{1,0}) tuple(%next, %got)
}

%condition (s.1: (s32[], bf16[1,8])) -> pred[] {
  %s.1 = (s32[], bf16[1,8]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %limit = s32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (a: bf16[1,8], g: f32[16]) -> bf16[1,8] {
  %a = bf16[1,8]{1,0} parameter(0)
  %g = f32[16]{0} parameter(1)
  %first = s32[]{:T(128)} constant(2)
  %copied = s32[]{:T(128)} copy(%first)
  %state = (s32[], bf16[1,8]{1,0}) tuple(%copied, %a)
  %scattered = f32[4]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.5
  %loop = (s32[], bf16[1,8]{1,0}) while(%state), condition=%condition, body=%body
  ROOT %r = bf16[1,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_loops_of_a_tpu_count_for_each_trip():
    found = hlo.cost(TPU)
    assert found.cycles == 6 * 100
    assert hlo.as_dict(found)["slowest"][0]["cycles"] == max(found.cycles_of.values())
    assert found.kernels["k"].calls == 6
    assert found.kernels["k"].shapes == (hlo.Shape("bf16", (1, 8)),)
    assert found.endless == 0


def test_a_gather_over_several_fusions_is_one():
    gathered = hlo.cost(TPU).collectives["all-gather"]
    assert gathered == hlo.Moved(6, 6 * 4 * 8 * 2, 6 * 4 * 8 * 2 * 3 / 4)


def test_a_permute_moves_its_result_once():
    assert hlo.cost(TPU).collectives["collective-permute"] == hlo.Moved(6, 96, 96)


def test_a_fusion_is_known_to_be_a_reduce_scatter():
    found = hlo.cost(TPU)
    assert found.collectives["reduce-scatter"] == hlo.Moved(1, 64, 48)
    assert "all-reduce" not in found.collectives


def test_what_moves_most_is_named():
    largest = hlo.as_dict(hlo.cost(TPU))["largest"][0]
    assert largest == {"kind": "all-gather", "source": "jit(f)/dot", "bytes": 6 * 64}


def test_a_loop_without_a_limit_counts_once_and_is_told():
    text = TPU.replace("constant(8)", "parameter(1)")
    found = hlo.cost(text)
    assert found.cycles == 100 and found.endless == 1


def test_a_counter_may_take_larger_steps():
    text = TPU.replace("%one = s32[]{:T(128)} constant(1)", "%one = s32[] constant(4)")
    assert hlo.cost(text).cycles == 2 * 100


# A batched matmul of a TPU: the batch is an axis that the window slides over.
BATCHED = """\
ENTRY %main (l: bf16[16,32,8], r: bf16[16,8,24]) -> bf16[16,32,24] {
  %l = bf16[16,32,8]{2,1,0} parameter(0)
  %r = bf16[16,8,24]{2,1,0} parameter(1)
  ROOT %y = bf16[16,32,24]{2,1,0} convolution(%l, %r), \
window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0io->0bf
}
"""


def test_a_batched_matmul_multiplies_no_padding():
    assert hlo.cost(BATCHED).flops == 2 * 16 * 32 * 8 * 24


@pytest.mark.parametrize("stride, pad", [(1, 2), (2, 0), (3, 4)])
@pytest.mark.parametrize("spread, reach", [(1, 1), (2, 1), (1, 2)])
def test_a_convolution_multiplies_no_padding(stride, pad, spread, reach):
    size, kernel = 16, 5
    length = ((size - 1) * spread + 2 * pad - (kernel - 1) * reach) // stride + 1
    padded = np.zeros((size - 1) * spread + 1 + 2 * pad)
    padded[pad : len(padded) - pad : spread] = 1
    pairs = sum(padded[o * stride + k * reach] for o in range(length) for k in range(5))
    text = f"""\
ENTRY %main (l: f32[2,{size},3], r: f32[5,3,4]) -> f32[2,{length},4] {{
  %l = f32[2,{size},3]{{2,1,0}} parameter(0)
  %r = f32[5,3,4]{{2,1,0}} parameter(1)
  ROOT %y = f32[2,{length},4]{{2,1,0}} convolution(%l, %r), window={{size=5 \
stride={stride} pad={pad}_{pad} lhs_dilate={spread} rhs_dilate={reach}}}, \
dim_labels=b0f_0io->b0f
}}
"""
    assert hlo.cost(text).flops == 2 * pairs * 2 * 3 * 4


def test_a_scan_counts_what_xla_counts_once():
    def repeated(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    compiled = (
        jax.jit(repeated).lower(jnp.ones((4, 16)), jnp.ones((8, 16, 16))).compile()
    )
    found = hlo.cost(compiled.as_text())
    assert found.flops == 8 * 2 * 4 * 16 * 16
    assert found.endless == 0


def test_collectives_of_a_compiled_scan_are_found():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("a",))
    rows = NamedSharding(mesh, PartitionSpec("a"))
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rows)

    @jax.jit
    def summed(x):
        def one(c, _):
            total = jax.shard_map(
                lambda part: jax.lax.psum(jnp.sin(part), "a"),
                mesh=mesh,
                in_specs=PartitionSpec("a"),
                out_specs=PartitionSpec(),
            )(c)
            return jnp.tile(total, (4, 1)) * c, None

        return jax.lax.scan(one, x, None, 3)[0]

    found = hlo.cost(summed.lower(x).compile().as_text())
    size = 2 * 16 * 4
    summed = hlo.Moved(3, 3 * size, 3 * 2 * size * 3 / 4)
    assert found.collectives["all-reduce"] == summed
