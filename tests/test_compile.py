"""`benchmarks compile`, on programs written by hand and on a small joint step for a TPU."""

# The lines of a compiled program are long.
# ruff: noqa: E501

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import compile as compile_benchmark
from benchmarks import hlo

# Shortened output of a TPU's compiler: inside a call, a loop of 7 turns, which only its condition says.
_TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4

FileNames
1 "/home/me/colorjax/colorjax/losses.py"
2 "/usr/lib/python3/site-packages/jax/core.py"

FunctionNames
1 "cross_entropy"

FileLocations
1 {file_name_id=1 function_name_id=1 line=42 end_line=42 column=4 end_column=20}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=4 end_column=20}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%fused_computation (param_0: f32[8,128]) -> f32[8,128] {
  %param_0 = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %exp.1 = f32[8,128]{1,0:T(8,128)} exponential(%param_0)
}

%body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %fusion.3 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%fused_computation, metadata={op_name="jit(step)/exp" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"1000","iteration_bounds":["1"]}}
  ROOT %next = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%i, /*index=1*/%fusion.3)
}

%condition (arg.1: (s32[], f32[8,128])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %constant.1 = s32[]{:T(128)} constant(7)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %compare.1 = pred[]{:T(512)} compare(%i.1, %constant.1), direction=LT
}

%inner (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%zero, %p)
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body
  ROOT %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}

ENTRY %main.9 (photo: f32[8,128]) -> f32[8,128] {
  %photo = f32[8,128]{1,0:T(8,128)} parameter(0)
  %call.1 = f32[8,128]{1,0:T(8,128)} call(%photo), to_apply=%inner
  %all-reduce-start.1 = f32[8,128]{1,0:T(8,128)} all-reduce-start(%call.1), replica_groups={{0,1,2,3}}, to_apply=%add
  %all-reduce-done.1 = f32[8,128]{1,0:T(8,128)} all-reduce-done(%all-reduce-start.1)
  %all-gather-start.1 = (f32[8,128]{1,0}, f32[32,128]{1,0}) all-gather-start(%all-reduce-done.1), dimensions={0}
  %all-gather-done.1 = f32[32,128]{1,0} all-gather-done(%all-gather-start.1)
  %custom = u32[16]{0:T(128)} fusion(%photo), kind=kCustom, calls=%fused_computation
  ROOT %copy.1 = f32[8,128]{0,1:T(8,128)} copy(%all-reduce-done.1), backend_config={"window_config":{"estimated_cycles":"500"}}
}
"""

# Shortened output of a GPU's compiler: an update in place and a slice inside fusions, in a loop of known length.
_GPU = """HloModule jit_step, is_scheduled=true

%update (param_0: f32[49,1000], param_1: f32[1000], param_2: s32[]) -> f32[49,1000] {
  %param_0 = f32[49,1000]{1,0} parameter(0)
  %param_1 = f32[1000]{0} parameter(1)
  %row = f32[1,1000]{1,0} bitcast(%param_1)
  %param_2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %dus = f32[49,1000]{1,0} dynamic-update-slice(%param_0, %row, %param_2, %zero)
}

%pick (param_0.1: f32[49,1000], param_1.1: s32[]) -> f32[1000] {
  %param_0.1 = f32[49,1000]{1,0} parameter(0)
  %param_1.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %slice = f32[1,1000]{1,0} dynamic-slice(%param_0.1, %param_1.1, %zero.1), dynamic_slice_sizes={1,1000}
  ROOT %flat = f32[1000]{0} bitcast(%slice)
}

%body (arg: (s32[], f32[49,1000], f32[49,1000])) -> (s32[], f32[49,1000], f32[49,1000]) {
  %arg = (s32[], f32[49,1000]{1,0}, f32[49,1000]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%arg), index=0
  %from = f32[49,1000]{1,0} get-tuple-element(%arg), index=1
  %to = f32[49,1000]{1,0} get-tuple-element(%arg), index=2
  %picked = f32[1000]{0} fusion(%from, %j), kind=kLoop, calls=%pick
  %updated = f32[49,1000]{1,0} fusion(%to, %picked, %j), kind=kLoop, calls=%update
  ROOT %next = (s32[], f32[49,1000]{1,0}, f32[49,1000]{1,0}) tuple(%j, %from, %updated)
}

%condition (arg.1: (s32[], f32[49,1000], f32[49,1000])) -> pred[] {
  %arg.1 = (s32[], f32[49,1000]{1,0}, f32[49,1000]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (a: f32[49,1000], b: bf16[100,64]) -> f32[49,1000] {
  %a = f32[49,1000]{1,0} parameter(0)
  %b = bf16[100,64]{1,0} parameter(1)
  %start = s32[] constant(0)
  %init = (s32[], f32[49,1000]{1,0}, f32[49,1000]{1,0}) tuple(%start, %a, %a)
  %loop = (s32[], f32[49,1000]{1,0}, f32[49,1000]{1,0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"49"}}
  %library = (bf16[100,32]{1,0}, u8[4096]{0}) custom-call(%b), custom_call_target="__cublas$gemm"
  ROOT %result = f32[49,1000]{1,0} get-tuple-element(%loop), index=2
}
"""


def test_cycles_of_a_tpu_count_a_loops_turns():
    row = compile_benchmark.analysis(_TPU, compile_benchmark.CHIPS["v5e"], root="/home/me/colorjax/")
    assert row["estimated M cycles"] == pytest.approx((7 * 1000 + 500) / 1e6)
    assert row["estimated ms"] == pytest.approx(1e3 * 7500 / 0.94e9)
    first, second = row["operations"][:2]
    assert (first["operation"], first["times"], first["line"]) == ("fusion fusion.3", 7, "colorjax/losses.py:42")
    assert first["share"] == pytest.approx(7000 / 7500)
    assert second["operation"] == "copy copy.1"
    assert row["kernels without estimate"] == 1


def test_collectives_are_counted_once_with_their_bytes_for_each_device():
    row = compile_benchmark.analysis(_TPU, compile_benchmark.CHIPS["v5e"])
    assert (row["all-reduces"], row["all-reduce MB"]) == (1, pytest.approx(8 * 128 * 4 / 1e6))
    assert (row["all-gathers"], row["all-gather MB"]) == (1, pytest.approx(32 * 128 * 4 / 1e6))


def test_bytes_of_a_gpu_are_those_of_slices_and_updates():
    row = compile_benchmark.analysis(_GPU, compile_benchmark.CHIPS["h100"])
    picked, updated = 4000 + 4000 + 4, 4000 + 4000 + 4  # the slice, or the update, in and out, and the index
    library = 100 * 64 * 2 + 100 * 32 * 2  # without its working space
    assert row["estimated GB moved"] == pytest.approx((49 * (picked + updated) + library) / 1e9)
    assert row["kernels"] == 2 * 49 + 1


def test_flops_are_those_of_products_and_convolutions_in_loops():
    def f(x, w, k):
        def turn(_, x):
            return jnp.tanh(x @ w)

        image = x.reshape(1, 8, 4, 8)
        convolved = jax.lax.conv_general_dilated(image, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.lax.fori_loop(0, 5, turn, x).sum() + convolved.sum()

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((32, 8), (8, 8), (3, 3, 8, 16))]
    text = jax.jit(f).lower(*shapes).as_text("hlo")
    assert hlo.matrix_flops(text) == 5 * 2 * 32 * 8 * 8 + 2 * 32 * 16 * 9 * 8


def test_unknown_programs_and_topologies_are_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("module @jit_f {}")
    with pytest.raises(ValueError, match="cannot compile 'joint' for 'abacus:1'"):
        compile_benchmark.compiled_row("abacus:1", "joint", None)


@pytest.mark.slow
def test_a_small_joint_step_compiles_for_tpus_and_gathers_no_batch(tmp_path: Path):
    pytest.importorskip("libtpu", reason='needs pip install "jax[tpu]"')
    found = tmp_path / "compile.json"
    small = {"data.image_size": 32, "data.resolution": 40, "model.width": 0.25, "model.dtype": "bfloat16"}
    options = ["--topology=v5e:2x2", "--programs=joint", "--per-chip=8", f"--json={found}"]
    options += [f"--config.{name}={value}" for name, value in small.items()]
    subprocess.run(
        [sys.executable, "-m", "benchmarks", "compile", *options],
        check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).resolve().parents[1],
        timeout=1500,
    )
    (row,) = json.loads(found.read_text())["rows"]
    assert row["fits"] == "yes"
    assert row["estimated M cycles"] > 0
    assert row["all-reduces"] > 0
    assert {"all-gathers", "all-to-alls", "collective-permutes"}.isdisjoint(row)
