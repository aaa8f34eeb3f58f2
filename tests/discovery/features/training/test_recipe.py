"""Defaults follow the width, and wrong numbers are refused with the allowed range."""

from __future__ import annotations

import pytest

from discovery.errors import FeatureError
from discovery.features.training import make_recipe
from discovery.features.training.recipe import _nearest_power_of_two


def test_defaults_follow_the_width(tiny_models):
    recipe = make_recipe(tiny_models.load("gpt2"))
    assert recipe.model_dump() == {
        "site": "resid_pre.1",
        "architecture": "topk",
        "d_in": 16,
        "d_sae": 128,
        "k": 4,
        "l1": None,
        "tokens": 199_936,
        "batch": 256,
        "learning_rate": 2e-3,
        "context": 12,
        "seed": 0,
    }
    assert (recipe.steps, recipe.warm_up_steps, recipe.decay_steps, recipe.dead_after_steps) == (
        781,
        39,
        234,
        78,
    )
    standard = make_recipe(tiny_models.load("gpt2"), architecture="standard")
    assert (standard.k, standard.l1) == (None, 1.0)


@pytest.mark.parametrize(
    ("number", "power"), [(14.1, 16), (34.6, 32), (80, 64), (0.5, 1), (1000, 1024)]
)
def test_powers_of_two(number, power):
    assert _nearest_power_of_two(number) == power


def test_whole_batches(tiny_models):
    recipe = make_recipe(tiny_models.load("gpt2"), tokens=1000, batch=300)
    assert (recipe.tokens, recipe.steps) == (900, 3)


@pytest.mark.parametrize(
    ("options", "cause", "cure"),
    [
        ({"site": "resid_pre.9"}, "resid_pre.9: Layer 9 does not exist", "0 to 2"),
        ({"site": "residual"}, "'residual' is not a site", "resid_pre.2"),
        ({"site": "pattern.0"}, "pattern has no width", "residual stream"),
        ({"architecture": "gated"}, "architecture 'gated'", "topk, standard"),
        ({"d_sae": 1}, "d_sae is 1", "from 2 to"),
        ({"d_sae": 2.5}, "d_sae is 2.5", "whole number"),
        ({"k": 0}, "k is 0", "from 1 to 128"),
        ({"k": 129}, "k is 129", "from 1 to 128"),
        ({"k": 3, "architecture": "standard"}, "k is 3, and the architecture is standard", "l1"),
        ({"l1": 3.0}, "l1 is 3.0, and the architecture is topk", "k"),
        ({"l1": -1, "architecture": "standard"}, "l1 is -1", "above 0"),
        ({"tokens": 10}, "tokens is 10", "from 64"),
        ({"batch": 0}, "batch is 0", "from 1 to"),
        ({"learning_rate": float("nan")}, "learning_rate is nan", "above 0"),
        ({"context": 13}, "context is 13", "from 2 to 12"),
        ({"seed": -1}, "seed is -1", "from 0"),
        ({"seed": True}, "seed is True", "whole number"),
    ],
)
def test_wrong_options_are_refused(options, cause, cure, tiny_models):
    with pytest.raises(FeatureError) as fault:
        make_recipe(tiny_models.load("gpt2"), **options)
    assert cause in fault.value.cause
    assert cure in fault.value.cure
