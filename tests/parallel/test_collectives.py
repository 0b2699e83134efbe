"""Collectives counted in programs whose messages are known beforehand, and in text as TPUs' compiler writes it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lcm_jax.parallel.collectives import Traffic, collectives
from lcm_jax.parallel.mesh import make_mesh

SIZE = 128 * 256 * 4  # bytes


def program(f, *arguments, out):
    mesh = make_mesh(data=4, fsdp=2)
    place = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place(spec)) for shape, spec in arguments]
    return collectives(jax.jit(f, out_shardings=place(out)).lower(*shapes).compile().as_text(), 8)


def test_a_gathered_array_is_one_message_of_its_size():
    found = program(lambda x: x + 1.0, ((128, 256), P("fsdp")), out=P())
    assert found == {"all-gather": Traffic(1, SIZE, SIZE // 2)}


def test_a_mean_over_the_batch_is_one_sum_over_all():
    found = program(lambda x: x.sum(0), ((64, 256), P(("data", "fsdp"))), out=P())
    assert found == {"all-reduce": Traffic(1, 1024, 2 * 1024 * 7 // 8)}


def test_a_loop_counts_as_often_as_it_runs():
    def f(xs):
        return jax.lax.scan(lambda total, x: (jnp.sin(total) + x.sum(0), None), jnp.zeros(256), xs)[0]

    found = program(f, ((5, 64, 256), P(None, ("data", "fsdp"))), out=P())
    assert found["all-reduce"].bytes == 5 * 1024 and set(found) == {"all-reduce"}


def test_what_needs_no_message_has_none():
    assert program(lambda x: x * 2.0, ((128, 256), P("fsdp")), out=P("fsdp")) == {}


TPU = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %a = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter (input: f32[512,512]) -> f32[512,256] {
  %all-reduce.2 = f32[512,512]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %slice = f32[512,256]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.2, %i, %j), dynamic_slice_sizes={512,256}
}

%body (state: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %permute = (bf16[64,64]{1,0}, bf16[64,64]{1,0}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %to-all = bf16[64,64]{1,0} all-to-all(%y), replica_groups=[2,2]<=[4], dimensions={0}
}

ENTRY %main (w: f32[512,256]) -> f32[512,256] {
  %all-gather.6 = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} all-gather(%c), replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_1'}, dimensions={1}
  %fusion = f32[512,256]{1,0:T(8,128)S(1)} fusion(%fusion.1), kind=kCustom, calls=%all-reduce-scatter
  %while = (s32[], bf16[64,64]) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %all-reduce.1 = f32[512,256]{1,0:T(8,128)} all-reduce(%fusion), replica_groups={}, to_apply=%add
}
"""  # noqa: E501


def test_the_text_of_tpus_is_read():
    found = collectives(TPU, 4)
    assert found["all-gather"] == Traffic(1, 512 * 512 * 2, 512 * 512)
    assert found["reduce-scatter"] == Traffic(1, 512 * 512 * 4, 512 * 512 * 2)
    assert found["all-reduce"] == Traffic(1, 512 * 256 * 4, 2 * 512 * 256 * 4 * 3 // 4)
    assert found["all-to-all"] == Traffic(3, 3 * 64 * 64 * 2, 3 * 64 * 64)
    assert found["collective-permute"] == Traffic(3, 3 * 64 * 64 * 2, 3 * 64 * 64 * 2)


SPREAD = """HloModule jit_step, is_scheduled=true

%start (w: bf16[64,16]) -> (bf16[64,16], bf16[64,64]) {
  %all-gather.1 = bf16[64,64]{1,0} all-gather(%w), channel_id=4, replica_groups={{0,1,2,3}}, dimensions={1}
  ROOT %custom-call.1 = (bf16[64,16], bf16[64,64]) custom-call(%all-gather.1), custom_call_target="AsyncStart"
}

%meanwhile (w: bf16[64,16]) -> bf16[64,64] {
  %all-gather.2 = bf16[64,64]{1,0} all-gather(%w), channel_id=4, replica_groups={{0,1,2,3}}, dimensions={1}
  ROOT %custom-call.2 = bf16[64,64] custom-call(%w, %all-gather.2), custom_call_target="AsyncDone"
}

%condition (state: (bf16[8,8], u32[])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(8), metadata={op_name="jit(step)/dot_general"}
  %i = u32[]{:T(128)} get-tuple-element(%state), index=1
  ROOT %compare = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%body (state: (bf16[8,8], u32[])) -> (bf16[8,8], u32[]) {
  %constant.2 = u32[]{:T(128)} constant(2)
  %j = u32[]{:T(128)} get-tuple-element(%state), index=1
  %x = bf16[8,8]{1,0} get-tuple-element(%state), index=0
  %copy = u32[]{:T(128)S(6)} copy(%j)
  %next = u32[]{:T(128)} add(%copy, %constant.2), control-predecessors={%copy}
  %permute-start = (bf16[8,8]{1,0}, bf16[8,8]{1,0}, u32[], u32[]{:S(2)}) collective-permute-start(%x), channel_id=7
  %permute-done = bf16[8,8]{1,0} collective-permute-done(%permute-start)
  ROOT %tuple = (bf16[8,8]{1,0}, u32[]{:T(128)}) tuple(%permute-done, %next)
}

ENTRY %main (w: bf16[64,16]) -> bf16[64,64] {
  %fusion.1 = (bf16[64,16], bf16[64,64]) fusion(%w), kind=kCustom, calls=%start
  %fusion.2 = bf16[64,64] fusion(%w), kind=kCustom, calls=%meanwhile
  %while = (bf16[8,8], u32[]) while(%init), condition=%condition, body=%body, metadata={op_name="dot_general"}
  ROOT %copy.9 = bf16[64,64] copy(%fusion.2)
}
"""


def test_a_message_spread_over_computations_is_one_and_a_loop_counts_by_its_condition():
    found = collectives(SPREAD, 4)
    assert found["all-gather"] == Traffic(1, 64 * 64 * 2, 64 * 64 * 2 * 3 // 4)
    assert found["collective-permute"] == Traffic(4, 4 * 8 * 8 * 2, 4 * 8 * 8 * 2)
    unknown = collectives(SPREAD.replace("direction=LT", "direction=GT"), 4)
    assert unknown["collective-permute"].count == 1


@pytest.mark.parametrize("text", ["", "HloModule empty\n"])
def test_no_program_has_no_messages(text):
    assert collectives(text, 8) == {}
