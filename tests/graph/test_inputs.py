from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from sparsify.errors import UserError
from sparsify.graph.inputs import InputSpec, TensorInput, parse_input
from sparsify.graph.trace import trace
from tests.models import MLP, MODELS


def test_a_description_names_dtype_sizes_and_open_dimensions() -> None:
    name, tensor = parse_input("ids:int64[batch, length=128, 3]")
    assert name == "ids"
    assert tensor == TensorInput((2, 128, 3), "int64", ((0, "batch"), (1, "length")))
    assert tensor.example().dtype == torch.int64
    assert tensor.example().shape == (2, 128, 3)


@pytest.mark.parametrize(
    "text", ["x", "x:float32", "x:float33[1]", "x:float32[-1]", "x:float32[a b]", "x:load[1]"]
)
def test_a_description_that_cannot_be_read_says_so(text: str) -> None:
    with pytest.raises(UserError, match="input"):
        parse_input(text)


def test_a_name_given_twice_is_an_error() -> None:
    with pytest.raises(UserError, match="same name"):
        InputSpec.parse(["x:float32[1]", "x:float32[2]"])


@pytest.mark.parametrize("name", ["mlp", "bert"])
def test_inputs_of_a_trace_survive_json_and_trace_again(name: str) -> None:
    entry = MODELS[name]
    model = entry.model()
    traced = trace(model, *entry.example(3, 7))
    spec = InputSpec.from_traced(traced)
    again = InputSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    args, kwargs = again.example()
    second = trace(model, args, kwargs, dynamic_shapes=again.dynamic_shapes())
    assert [n.target for n in second.module.graph.nodes] == [n.target for n in traced.module.graph.nodes]
    sizes = [tuple(t.shape) for t in (*args, *kwargs.values())]
    assert sizes and all(s[0] == 3 for s in sizes)
    assert all(0 in dims for dims in again.dynamic_shapes().values())


def test_nested_inputs_and_constants_survive_json() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(
            self, pair: list[Tensor], options: dict[str, Tensor], scale: float, flag: None = None
        ) -> Tensor:
            return self.fc(pair[0] + pair[1]) * scale + options["bias"]

    model = Nested()
    args = ([torch.randn(3, 4), torch.randn(3, 4)], {"bias": torch.randn(3, 4)}, 2.0)
    traced = trace(model, args, {"flag": None})
    spec = InputSpec.from_traced(traced)
    assert InputSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    example, kwargs = spec.example()
    assert example[2] == 2.0 and kwargs == {"flag": None}
    torch.testing.assert_close(traced.module(*args, flag=None), model(*args))


def test_inputs_whose_names_forward_does_not_know_are_taken_by_position() -> None:
    spec = InputSpec.parse(["image:float32[n,12]"])
    args, kwargs = spec.example()
    traced = trace(MLP(), args, kwargs, dynamic_shapes=spec.dynamic_shapes())
    assert isinstance(traced.module.graph.find_nodes(op="placeholder")[0].meta["val"].shape[0], torch.SymInt)


def test_damaged_json_is_a_user_error() -> None:
    with pytest.raises(UserError, match="damaged"):
        InputSpec.from_json({"names": [], "args": [{"what": 1}], "kwargs": {}})
