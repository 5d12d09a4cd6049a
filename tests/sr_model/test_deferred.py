"""The registries import the networks and terms only when they are used."""

import pytest
import torch

from sr_model.deferred import deferred
from sr_model.networks import ARCHITECTURES
from sr_model.networks.super_resolver import SuperResolver
from sr_model.terms import TERMS


def test_a_deferred_function_is_imported_when_it_is_called() -> None:
    assert deferred("json:loads")("[1]") == [1]
    missing = deferred("sr_model.nothing:build")
    with pytest.raises(ModuleNotFoundError):
        missing()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_is_built_at_its_scales_and_recognised(name: str) -> None:
    kind = ARCHITECTURES[name]
    for scale in kind.scales:
        with torch.device("meta"):
            net = kind.build(scale, kind.settings())  # type: ignore[call-arg]
            assert isinstance(net, SuperResolver)
            assert net.scale == scale
            assert kind.infer(net.state_dict())[0] == scale


@pytest.mark.parametrize("name", TERMS)
def test_every_term_without_pretrained_weights_gives_a_value_for_each_image(name: str) -> None:
    kind = TERMS[name]
    needed = kind.pretrained(kind.settings())
    if needed:
        with pytest.raises(ValueError, match="the weights lack"):
            needed.select({})
    else:
        images = torch.rand(2, 3, 8, 8)
        assert kind.create(kind.settings(), {})(images, 1 - images).shape == (2,)
