from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from sparsify.errors import RuntimeLibraryError, UserError
from sparsify.runtime import Session, layouts, library_path
from sparsify.runtime.profile_events import node_times
from sparsify.runtime.reference import sparse_conv, sparse_linear
from tests.runtime.graphs import masked, model, one_node, sparse_mlp, sparse_node, values

EPS = np.finfo(np.float32).eps
INFERS_SHAPES = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 24)


def _close(got: np.ndarray, want: np.ndarray, terms: int) -> None:
    assert got.shape == want.shape
    bound = 8 * EPS * np.sqrt(terms) * max(1.0, float(np.abs(want).max(initial=0)))
    assert float(np.abs(got - want).max(initial=0)) <= bound


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_a_linear_node_computes_what_the_reference_says(activation: str, threads: int, fused: bool):
    packed = layouts.pack_linear(masked((21, 50), 0.3))
    bias = values((21,)) if fused else None
    data = one_node(
        packed,
        ["n", "s", 50],
        bias=bias,
        residual=["n", "s", 21] if fused else None,
        activation=activation,
    )
    session = Session(data, threads=threads)
    for shape in ((1, 1), (3, 5), (2, 40), (0, 4)):
        x, residual = values((*shape, 50)), values((*shape, 21), 5) if fused else None
        feeds = {"x": x} | ({} if residual is None else {"residual": residual})
        _close(session.run(feeds)["y"], sparse_linear(x, packed, bias, residual, activation), 50)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("weight", "strides", "pads", "dilations"),
    [
        ((6, 5, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
        ((6, 5, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        ((7, 3, 3, 2), (2, 1), (1, 0, 2, 1), (1, 2)),
    ],
)
def test_a_convolution_node_computes_what_the_reference_says(
    weight: tuple[int, ...],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
    threads: int,
):
    packed = layouts.pack_conv(masked(weight, 0.4), strides=strides, pads=pads, dilations=dilations)
    bias = values((weight[0],))
    shape = ["n", weight[1], "h", "w"]
    data = one_node(packed, shape, bias=bias, residual=["n", weight[0], "oh", "ow"], activation="relu")
    session = Session(data, threads=threads)
    for size in ((1, 9, 11), (3, 14, 6)):
        x = values((size[0], weight[1], *size[1:]))
        bare = sparse_conv(x, packed, bias, None, "none")
        residual = values(bare.shape, 6)
        want = np.maximum(bare + residual, 0)
        _close(session.run({"x": x, "residual": residual})["y"], want, int(np.prod(weight[1:])))


def test_concurrent_calls_of_one_session_do_not_disturb_each_other():
    packed = layouts.pack_linear(masked((64, 2048), 0.1))
    session = Session(one_node(packed, ["n", 2048]), threads=2)
    inputs = [values((rows, 2048), rows) for rows in (1, 7, 33, 64, 65, 200)] * 4
    alone = [session.run({"x": x})["y"] for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda x: session.run({"x": x})["y"], inputs))
    for got, want in zip(together, alone, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(not INFERS_SHAPES, reason="shape inference is registered from ONNX Runtime 1.24 on")
def test_shape_inference_keeps_symbols_and_computes_sizes():
    linear = Session(one_node(layouts.pack_linear(masked((8, 5), 0.5)), ["n", "s", 5]))
    assert linear.outputs[0].shape == ("n", "s", 8)
    same = layouts.pack_conv(masked((8, 5, 3, 3), 0.5), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1))
    assert Session(one_node(same, ["n", 5, "h", 10])).outputs[0].shape == ("n", 8, "h", 10)
    halved = layouts.pack_conv(masked((8, 5, 3, 3), 0.5), strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1))
    shape = Session(one_node(halved, ["n", 5, "h", 9])).outputs[0].shape
    assert (shape[0], shape[1], shape[3]) == ("n", 8, 5)
    assert shape[2] not in ("h", None)


def test_packed_weights_that_are_corrupt_are_an_error_and_no_crash():
    packed = layouts.pack_linear(masked((12, 30), 0.5))
    tried = 0
    for index, tensor in enumerate(packed.tensors):
        if tensor.dtype.kind not in "iu" or tensor.size == 0:
            continue
        broken = tensor.copy()
        broken[tensor.size // 2] = np.iinfo(tensor.dtype).max
        tensors = (*packed.tensors[:index], broken, *packed.tensors[index + 1 :])
        with pytest.raises(RuntimeLibraryError, match="sparse"):
            Session(one_node(packed, ["n", 30], tensors=tensors))
        tried += 1
    assert tried
    for index in range(len(packed.tensors)):
        shorter = (*packed.tensors[:index], packed.tensors[index][:-1], *packed.tensors[index + 1 :])
        with pytest.raises(RuntimeLibraryError, match="sparse"):
            Session(one_node(packed, ["n", 30], tensors=shorter))


def test_a_node_that_this_library_does_not_understand_is_an_error_that_names_it():
    packed = layouts.pack_linear(masked((12, 30), 0.5))
    with pytest.raises(RuntimeLibraryError, match=r"'sparse'.*activation 'swish'"):
        Session(one_node(packed, ["n", 30], activation="swish"))
    other = layouts.Packed(
        "SparseLinear", "csr", packed.shape, packed.tensors, packed.attributes | {"layout": "x"}
    )
    with pytest.raises(RuntimeLibraryError, match="'sparse'"):
        Session(one_node(other, ["n", 30]))
    node = sparse_node(packed)
    constants = {f"sparse.{i}": tensor for i, tensor in enumerate(packed.tensors[1:], 1)}
    open_weight = model([node], constants, {"x": ["n", 30], "sparse.0": [None]})
    with pytest.raises((RuntimeLibraryError, UserError)):
        Session(open_weight.SerializeToString())


def test_shapes_that_do_not_fit_at_run_time_are_user_errors():
    packed = layouts.pack_linear(masked((12, 30), 0.5))
    data = one_node(packed, ["n", "k"], residual=["n", "m"])
    session = Session(data)
    with pytest.raises(UserError, match="30"):
        session.run({"x": values((2, 29)), "residual": values((2, 12))})
    with pytest.raises(UserError, match="residual"):
        session.run({"x": values((2, 30)), "residual": values((1, 12))})
    with pytest.raises(RuntimeLibraryError, match=r"bias has shape \[11\]"):
        Session(one_node(packed, ["n", 30], bias=values((11,))))


def test_a_bias_that_is_computed_is_read_at_every_call():
    packed = layouts.pack_linear(masked((12, 30), 0.5))
    constants = {f"sparse.{i}": tensor for i, tensor in enumerate(packed.tensors)}
    graph = model([sparse_node(packed, bias=True)], constants, {"x": ["n", 30], "bias": ["m"]})
    session, x = Session(graph.SerializeToString()), values((3, 30))
    for seed in (8, 9):
        bias = values((12,), seed)
        _close(session.run({"x": x, "bias": bias})["y"], sparse_linear(x, packed, bias, None, "none"), 30)
    with pytest.raises(UserError, match="bias"):
        session.run({"x": x, "bias": values((11,))})


def test_wrong_inputs_are_named(tmp_path: Path):
    session = Session(sparse_mlp(tmp_path / "mlp.onnx"))
    with pytest.raises(UserError, match=r"input 'x' of .* is missing"):
        session.run({})
    with pytest.raises(UserError, match="no input 'z'"):
        session.run({"x": values((1, 24)), "z": values((1,))})
    with pytest.raises(UserError, match="float32, not float64"):
        session.run({"x": np.zeros((1, 24))})
    with pytest.raises(UserError, match=r"shape \[1, 25\]"):
        session.run({"x": values((1, 25))})
    with pytest.raises(UserError, match="no output 'q'"):
        session.run(["q"], {"x": values((1, 24))})
    feeds = {"x": values((1, 24))}
    (listed,) = session.run(["y"], feeds)
    assert np.array_equal(listed, session.run(feeds)["y"])
    assert np.array_equal(listed, session.run(None, feeds)[0])
    assert [value.name for value in session.get_inputs()] == ["x"]


def test_what_cannot_be_opened_says_why(tmp_path: Path):
    with pytest.raises(UserError, match="no file"):
        Session(tmp_path / "missing.onnx")
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"garbage\.onnx"):
        Session(garbage)
    path = sparse_mlp(tmp_path / "mlp.onnx")
    with pytest.raises(UserError, match="NoSuchProvider"):
        Session(path, providers=["NoSuchProvider"])
    with pytest.raises(UserError, match="no_such_setting"):
        Session(path, no_such_setting=1)
    with pytest.raises(UserError, match="threads"):
        Session(path, threads=0)


def test_session_options_pass_through(tmp_path: Path):
    path = sparse_mlp(tmp_path / "mlp.onnx")
    optimized = tmp_path / "optimized.onnx"
    Session(path, optimized_model_filepath=str(optimized))
    assert optimized.is_file()
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = {"x": values((3, 24))}
    np.testing.assert_allclose(
        Session(path, graph_optimization_level=level).run(x)["y"], Session(path).run(x)["y"], rtol=1e-6
    )


def test_the_callers_own_options_serve_several_sessions(tmp_path: Path):
    path, x = sparse_mlp(tmp_path / "mlp.onnx"), {"x": values((3, 24))}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    first, second = (Session(path, session_options=options) for _ in range(2))
    assert options.get_session_config_entry("ai.sparsify.threads") == "2"
    np.testing.assert_array_equal(first.run(x)["y"], second.run(x)["y"])
    profiled = Session(path, session_options=options, profile=True)
    assert not options.enable_profiling
    profiled.run(x)
    assert {"first", "second"} <= {row["node"] for row in profiled.profile()}
    own = onnxruntime.SessionOptions()
    own.register_custom_ops_library(str(library_path()))
    with pytest.raises(UserError, match="leave register_custom_ops_library out"):
        Session(path, session_options=own)


def test_threads_said_as_a_setting_reach_the_operators(tmp_path: Path):
    options = onnxruntime.SessionOptions()
    Session(sparse_mlp(tmp_path / "mlp.onnx"), session_options=options, intra_op_num_threads=3)
    assert options.get_session_config_entry("ai.sparsify.threads") == "3"
    with pytest.raises(UserError, match="intra_op_num_threads"):
        Session(tmp_path / "mlp.onnx", intra_op_num_threads="many")


def test_providers_take_options(tmp_path: Path):
    path, name = sparse_mlp(tmp_path / "mlp.onnx"), "CPUExecutionProvider"
    assert Session(path, providers=[(name, {})]).get_providers() == [name]
    assert Session(path, provider_options=[{}]).get_providers() == [name]
    with pytest.raises(UserError, match="2 entries for 1 providers"):
        Session(path, provider_options=[{}, {}])
    with pytest.raises(UserError, match="NoSuchProvider"):
        Session(path, providers=[("NoSuchProvider", {})])


def test_bound_inputs_and_outputs_stay_in_the_callers_memory(tmp_path: Path):
    session, x = Session(sparse_mlp(tmp_path / "mlp.onnx")), values((5, 24))
    want = session.run({"x": x})["y"]
    y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((5, 24), np.float32))
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_ortvalue_output("y", y)
    session.run_with_iobinding(binding, onnxruntime.RunOptions())
    np.testing.assert_array_equal(y.numpy(), want)
    broken = session.io_binding()
    broken.bind_cpu_input("x", values((5, 25)))
    broken.bind_output("y")
    with pytest.raises(UserError, match="failed on what is bound"):
        session.run_with_iobinding(broken)


def test_one_run_can_be_stopped_by_its_options(tmp_path: Path):
    session, x = Session(sparse_mlp(tmp_path / "mlp.onnx")), {"x": values((5, 24))}
    stop = onnxruntime.RunOptions()
    stop.terminate = True
    for call in (lambda: session.run(x, run_options=stop), lambda: session.run(None, x, stop)):
        with pytest.raises(UserError, match="terminate"):
            call()
    assert session.run(x)["y"].shape == (5, 24)


def test_sessions_in_several_threads_do_not_disturb_each_other(tmp_path: Path):
    path, x = sparse_mlp(tmp_path / "mlp.onnx"), values((70, 24))
    want = Session(path, threads=1).run({"x": x})["y"]

    def open_and_run(threads: int) -> list[np.ndarray]:
        session = Session(path, threads=threads)
        return [session.run({"x": x[:rows]})["y"] for rows in (1, 7, 70)]

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(open_and_run, [1, 2, 3, 1, 2, 4] * 3))
    for got in results:
        for rows, y in zip((1, 7, 70), got, strict=True):
            np.testing.assert_allclose(y, want[:rows], rtol=1e-5, atol=1e-5)


def test_onnx_runtimes_own_profile_can_be_had(tmp_path: Path):
    path = sparse_mlp(tmp_path / "mlp.onnx")
    session = Session(path, enable_profiling=True, profile_file_prefix=str(tmp_path / "trace"))
    session.run({"x": values((3, 24))})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    rows = {row["node"]: row for row in node_times(events)}
    assert rows["first"]["inputs"][0] == [3, 24]
    assert rows["first"]["outputs"] == [[3, 40]]
    with pytest.raises(UserError, match="call profile"):
        Session(path, profile=True).end_profiling()


def test_nodes_without_names_are_told_apart():
    events = [
        {
            "cat": "Node",
            "name": "_kernel_time",
            "dur": dur,
            "args": {"op_name": "Reorder", "node_index": index, "output_type_shape": [{"float": [1, 2]}]},
        }
        for index, dur in ((0, 5), (1, 15), (0, 5), (1, 15))
    ]
    rows = node_times(events)
    assert [(row["us"], row["calls"], row["share"]) for row in rows] == [(15, 2, 0.75), (5, 2, 0.25)]
    assert rows[0]["outputs"] == [[1, 2]]
    assert rows[0]["inputs"] == []


def test_without_the_library_dense_models_run_and_sparse_ones_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sparse = sparse_mlp(tmp_path / "mlp.onnx")
    dense = model([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": ["n", 2]})
    monkeypatch.setenv("SPARSIFY_LIBRARY", str(tmp_path / "nowhere.so"))
    with pytest.raises(RuntimeLibraryError, match="SPARSIFY_LIBRARY"):
        Session(sparse)
    assert Session(dense.SerializeToString()).run({"x": values((1, 2))})["y"].shape == (1, 2)


def test_profile_names_the_sparse_nodes_once(tmp_path: Path):
    session = Session(sparse_mlp(tmp_path / "mlp.onnx"), profile=True)
    for _ in range(3):
        session.run({"x": values((4000, 24))})
    rows = {row["node"]: row for row in session.profile()}
    assert rows["first"]["op"] == "SparseLinear"
    assert rows["first"]["calls"] == 3
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    with pytest.raises(UserError, match="profile"):
        session.profile()


def test_external_data_is_found_beside_the_file(tmp_path: Path):
    path = sparse_mlp(tmp_path / "mlp.onnx")
    want = Session(path).run({"x": values((2, 24))})["y"]
    (tmp_path / "out").mkdir()
    onnx.save(
        onnx.load(path),
        tmp_path / "out" / "mlp.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    got = Session(tmp_path / "out" / "mlp.onnx").run({"x": values((2, 24))})["y"]
    np.testing.assert_array_equal(got, want)


def test_the_runtime_loads_no_torch():
    script = (
        "import sys, sparsify.runtime as r; r.Session, r.bench, r.bench_layer, r.doctor, r.library_path;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
