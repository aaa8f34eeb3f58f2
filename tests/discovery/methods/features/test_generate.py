"""Text written with features changed, against plain runs of the whole text at every step."""

from __future__ import annotations

import pytest
import torch

from discovery.errors import FeatureError, MeasurementError
from discovery.features import FeatureChange, load_sae
from discovery.interventions import Edit
from discovery.methods.features import generate_with_features
from tests.oracles.models.sae_features import greedy_continuation
from tests.tiny_saes import directions_module, random_module, save, signed_basis

PROMPT = (3, 9, 4, 12)


@pytest.mark.parametrize(
    "hook", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out", "attn.hook_z"]
)
@pytest.mark.parametrize("error", ["keep", "drop"])
def test_it_is_what_plain_runs_write(tiny_models, tmp_path, hook, error):
    model = tiny_models.load("native")
    module = random_module(
        "standard",
        18 if hook[-1] == "z" else 12,
        30,
        f"blocks.1.{hook}",
        normalize_activations="layer_norm",
    )
    sae = load_sae(save(module, tmp_path / "sae"), model)
    change = {3: 4.0, 8: -2.0}

    def edit(model, batch):
        clean = model.run(batch, [sae.writes]).activations[sae.writes]
        value = clean.clone()
        value[:, 1:] = sae.edit(clean, FeatureChange.of(change, "add", 30), error=error)[:, 1:]
        return [Edit(sae.writes, value)]

    result = generate_with_features(
        model,
        sae,
        PROMPT,
        change,
        operation="add",
        positions=slice(1, None),
        error=error,
        tokens=5,
        controls=2,
    )
    assert result.clean.tokens == greedy_continuation(model, PROMPT, 5)
    assert result.edited.tokens == greedy_continuation(model, PROMPT, 5, edit)
    assert len(result.controls) == 2
    assert result.kl > 0
    assert result.cost.forward_equivalents > 5


def test_nothing_changed_writes_the_same(tiny_models, tmp_path):
    model = tiny_models.load("native")
    sae = load_sae(
        save(random_module("topk", 12, 30, "blocks.0.hook_resid_post"), tmp_path / "sae"), model
    )
    result = generate_with_features(
        model, sae, PROMPT, {2: 1.0}, operation="scale", tokens=6, controls=0
    )
    assert result.edited == result.clean
    assert (result.first_difference, result.kl, result.controls) == (None, 0.0, ())
    assert result.clean.text is None


def test_steering_along_a_token_writes_it(tiny_models, tmp_path):
    """The direction is the unembedding's row of token 17, in a model without a final norm."""
    model = tiny_models.load("attn_only")
    unembedding = tiny_models.native("attn_only").state["unembed.W_U"]
    direction = unembedding[:, 17] / unembedding[:, 17].norm()
    sae = load_sae(
        save(
            directions_module(
                torch.cat([direction[None], signed_basis(12)]), "blocks.1.hook_resid_post"
            ),
            tmp_path / "sae",
        ),
        model,
    )
    result = generate_with_features(model, sae, PROMPT, {0: 100.0}, operation="add", tokens=4)
    assert result.edited.tokens == (17, 17, 17, 17)
    assert result.first_difference == 0
    assert result.controls[0].tokens != result.edited.tokens


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"tokens": 0}, MeasurementError, "tokens is 0"),
        ({"tokens": 2.5}, MeasurementError, "tokens is 2.5"),
        ({"tokens": 1, "prompt": (1,) * 12}, MeasurementError, "positions for none"),
        ({"tokens": 9}, MeasurementError, "positions for 1 to 8"),
        ({"error": "zero"}, MeasurementError, "Allowed: keep, drop"),
        ({"controls": -1}, MeasurementError, "controls is -1"),
        ({"prompt": "text"}, MeasurementError, "no tokenizer"),
        ({"features": {99: 1.0}}, FeatureError, "does not exist"),
        (
            {"features": {2: 1e300}},
            FeatureError,
            "1e\\+300 of feature 2 the model's logits are not finite",
        ),
        ({"operation": "clamp"}, FeatureError, "set, scale, add"),
        ({"sae": "nothing"}, FeatureError, "'nothing' is no directory, no run"),
        ({"sae": None}, FeatureError, "The bundled SAE is of the bundled model"),
    ],
)
def test_bad_input(tiny_models, tmp_path, changes, kind, message):
    model = tiny_models.load("native")
    sae = load_sae(
        save(random_module("topk", 12, 30, "blocks.0.hook_resid_post"), tmp_path / "sae"), model
    )
    with pytest.raises(kind, match=message):
        generate_with_features(
            **{"model": model, "sae": sae, "prompt": PROMPT, "features": {2: 1.0}, "tokens": 2}
            | changes
        )


def test_single_positions_are_changed_alone(tiny_models, tmp_path):
    """At the first step the newest position is the last of the prompt."""
    model = tiny_models.load("native")
    sae = load_sae(
        save(random_module("topk", 12, 30, "blocks.0.hook_resid_post"), tmp_path / "sae"), model
    )

    def written(positions):
        return generate_with_features(
            model, sae, PROMPT, {2: 9.0}, operation="add", positions=positions, tokens=1, controls=0
        ).kl

    assert written([3]) == written([-1]) == written(slice(3, None)) != written(None)
    for wrong in ([4], ["end"], []):
        with pytest.raises(
            MeasurementError, match=r"not a position of this prompt|positions is empty"
        ):
            written(wrong)
