"""Variants of a network: each comes back from its factory and weights, and what cannot be made is said."""

import pytest
import torch
from torch import nn

from cascade.errors import ConfigError
from cascade.models.compress import How, Method, Rows, Source, Student, make
from cascade.models.distil import Training
from cascade.models.factory import call_factory

QUICK = Training(epochs=2, batch=32)


class Stack(nn.Sequential):
    """A small network over rows [n, 4]."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def source() -> Source:
    torch.manual_seed(0)
    return Source("test_compress:Stack", {"width": 8}, Stack(8).eval())


def rows(count: int = 200) -> Rows:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=random)
    return Rows((x,), source().network(x).argmax(1))


def again(variant) -> nn.Module:
    network = call_factory(variant.factory, variant.args)
    network.load_state_dict({name: value.clone() for name, value in variant.state.items()}, strict=True)
    return network.eval()


@pytest.mark.parametrize("method", [m for m in Method if m is not Method.PRUNED])
def test_a_variant_is_made_again_from_its_factory_and_weights_and_agrees_with_its_source(method):
    given, of = rows(), source()
    untouched = {name: value.clone() for name, value in of.network.state_dict().items()}
    how = How(student=Student("test_compress:Stack", {"width": 8}, untouched), distilling=QUICK)
    variant = make(method, of, [given.inputs[0][:1]], given, how, clock=lambda: 0.0)
    with torch.inference_mode():
        agree = (again(variant)(given.inputs[0]).argmax(1) == given.labels).float().mean()
    assert agree > 0.95
    for name, value in of.network.state_dict().items():
        assert torch.equal(value, untouched[name])


def test_half_precision_is_a_precision_of_the_same_network():
    variant = make(Method.BFLOAT16, source(), [torch.zeros(1, 4)], None, How(), clock=lambda: 0.0)
    assert variant.precision == "bfloat16"
    assert {value.dtype for value in variant.state.values()} == {torch.bfloat16}
    assert (variant.factory, variant.args) == ("test_compress:Stack", {"width": 8})


def test_a_pruned_network_is_mended_by_what_the_whole_one_says():
    pytest.importorskip("torch_pruning")
    given = rows(2000)
    example = [given.inputs[0][:1]]

    def agreement(with_rows: Rows | None) -> float:
        how = How(mending=Training(epochs=20, batch=32, rate=0.02))
        variant = make(Method.PRUNED, source(), example, with_rows, how, clock=lambda: 0.0)
        with torch.inference_mode():
            return float((again(variant)(given.inputs[0]).argmax(1) == given.labels).float().mean())

    assert agreement(given) > agreement(None)
    unmended = make(Method.PRUNED, source(), example, None, How(), clock=lambda: 0.0)
    assert "not mended" in unmended.note


@pytest.mark.parametrize("method", [Method.INT8_STATIC, Method.DISTILLED])
def test_a_method_that_needs_rows_says_so(method):
    with pytest.raises(ConfigError, match=f"{method} needs training rows"):
        make(method, source(), [torch.zeros(1, 4)], None, How(), clock=lambda: 0.0)


def test_distilling_into_nothing_is_refused():
    with pytest.raises(ConfigError, match="needs a student"):
        make(Method.DISTILLED, source(), [torch.zeros(1, 4)], rows(), How(), clock=lambda: 0.0)


def test_a_network_without_layers_that_int8_knows_is_refused():
    of = Source("torch.nn:ReLU", {}, nn.ReLU())
    with pytest.raises(ConfigError, match="no plain Conv2d or Linear"):
        make(Method.INT8_DYNAMIC, of, [torch.zeros(1, 4)], None, How(), clock=lambda: 0.0)


def test_layers_can_be_left_alone():
    of = source()
    variant = make(Method.INT8_DYNAMIC, of, [torch.zeros(1, 4)], None, How(leave=("2",)), clock=lambda: 0.0)
    assert variant.state["0.weight_int8"].dtype == torch.int8
    assert variant.state["2.weight"].dtype == torch.float32
    assert type(again(variant)[2]) is nn.Linear


def test_a_loss_that_is_no_number_is_an_error_of_the_operator():
    given = rows()
    broken = Rows((given.inputs[0] * float("nan"),), given.labels)
    how = How(student=Student("test_compress:Stack", {"width": 4}), distilling=QUICK)
    with pytest.raises(ConfigError, match="smaller learning rate"):
        make(Method.DISTILLED, source(), [torch.zeros(1, 4)], broken, how, clock=lambda: 0.0)
