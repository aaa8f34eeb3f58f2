"""Features as nodes: every number against a computation written out on the weights in float64, and planted features of a known circuit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.truth import load_truth
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery import add_features, load_model, load_task
from discovery.engine import Engine
from discovery.errors import MeasurementError
from discovery.features import load_sae
from discovery.graph import CircuitEdge, CircuitGraph, CircuitNode, Effect, ModelFacts, TaskFacts
from discovery.methods.features.arguments import resolve_positions
from discovery.methods.features.circuit.edges import (
    FeatureEdgeEffect,
    find_sources,
    find_targets,
    measure_feature_edges,
)
from discovery.methods.features.circuit.exchange import measure_exchange, rank_by_attribution
from discovery.methods.features.circuit.feature_circuit import _edge_holds
from discovery.sites import Node, slots_of
from tests.oracles.path_patching import PathPatchingOracle
from tests.tiny_saes import directions_module, random_module, save, signed_basis

POSITIONS = [1, 3, -1]
CLOSE = {"atol": 2e-4, "rtol": 1e-4}
HOOKS = [
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
]


def site_of_hook(hook):
    return hook.split("hook_")[1]


class FeaturePatchingOracle:
    """A standard dictionary with SAELens's layer norm, in a native model, pair by pair in float64."""

    def __init__(self, native, module, reads, writes, pairs):
        self.native, self.pairs, self.reads, self.writes = native, pairs, reads, writes
        self.w = {name: value.double() for name, value in module.named_parameters()}
        self.known = {}

    def codes(self, x):
        """z and s·z of [pos d_in]."""
        mean, spread = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        inside = (x - mean) / (spread + 1e-5)
        z = ((inside - self.w["b_dec"]) @ self.w["W_enc"] + self.w["b_enc"]).relu()
        return z, z * spread

    def sides(self, pair):
        return (torch.tensor(side) for side in (pair.clean, pair.corrupted))

    def metric(self, pair, logits):
        return logits[list(pair.answer)].logsumexp(0) - logits[list(pair.wrong)].logsumexp(0)

    def at_positions(self, pair, change):
        kept = torch.zeros_like(change)
        places = [place % len(pair.clean) for place in POSITIONS]
        kept[places] = change[places]
        return kept

    def contributions(self, pair):
        """z and s·z in the clean run and in the corrupted one."""
        if id(pair) not in self.known:
            self.known[id(pair)] = [
                self.codes(self.native.sites(side)[1][self.reads]) for side in self.sides(pair)
            ]
        return self.known[id(pair)]

    def metric_after_push(self, pair, tokens, amount, feature):
        push = self.at_positions(pair, amount)[:, None] * self.w["W_dec"][feature]
        return self.metric(pair, self.native.sites(tokens, {self.writes: push})[0])

    def exchange_effects(self, feature):
        """noised, denoised, removed, activation of each pair."""
        rows = []
        for pair in self.pairs:
            clean, corrupted = self.sides(pair)
            (z, here), (_, there) = self.contributions(pair)
            here, there = here[:, feature], there[:, feature]
            peak = self.at_positions(pair, z[:, feature]).max()
            ways = ((clean, there - here), (corrupted, here - there), (clean, -here))
            rows.append(
                torch.stack([*(self.metric_after_push(pair, *way, feature) for way in ways), peak])
            )
        return torch.stack(rows).T

    def effect_on_feature(self, source, feature):
        """Where the dictionary alone hears the corrupted source: the metric, and how far the feature goes on its way."""
        rows = []
        for pair in self.pairs:
            clean, corrupted = self.sides(pair)
            message = self.native.values(corrupted)[source] - self.native.values(clean)[source]
            seen = self.native.sites(clean)[1][self.reads]
            if self.reads.startswith("z"):
                d_head, head = self.native.config["d_head"], int(source.split("h")[1])
                message = torch.zeros_like(seen)
                other = self.native.sites(corrupted)[1][self.reads]
                own = slice(head * d_head, (head + 1) * d_head)
                message[:, own] = (other - seen)[:, own]
            (z, c), (z_now, c_now) = self.codes(seen), self.codes(seen + message)
            way = z[:, feature] - self.contributions(pair)[1][0][:, feature]
            along = self.at_positions(pair, (z[:, feature] - z_now[:, feature]) * way.sign()).sum()
            own = self.at_positions(pair, way.abs()).sum()
            rows.append(
                torch.stack(
                    [
                        self.metric_after_push(
                            pair, clean, c_now[:, feature] - c[:, feature], feature
                        ),
                        along,
                        own,
                    ]
                )
            )
        return torch.stack(rows).T

    def effect_on_node(self, feature, target, slots):
        """The metric where these inputs of the target alone hear the feature as it is in the corrupted run."""
        rows = []
        for pair in self.pairs:
            clean, _ = self.sides(pair)
            (_, here), (_, there) = self.contributions(pair)
            direction = self.w["W_dec"][feature]
            if self.writes.startswith("z"):
                layer, d_head = int(self.writes[-1]), self.native.config["d_head"]
                heads = self.native.w[f"blocks.{layer}.attn.W_O"]
                direction = sum(part @ heads[h] for h, part in enumerate(direction.split(d_head)))
            message = (
                self.at_positions(pair, there[:, feature] - here[:, feature])[:, None] * direction
            )
            rows.append(
                self.metric(pair, self.native.logits_with_message(clean, target, slots, message))
            )
        return torch.stack(rows)


@pytest.fixture
def random_case(tiny_models, tmp_path):
    """A random LayerNorm model, pairs of different lengths, and a random dictionary at a hook."""

    def of(hook, layer, hook_out=None):
        model, weights = tiny_models.load("native"), tiny_models.native("native")
        width = 18 if hook.endswith("z") else 12
        module = random_module(
            "standard", width, 20, f"blocks.{layer}.{hook}", normalize_activations="layer_norm"
        )
        sae = load_sae(save(module, tmp_path / "sae"), model)
        pairs = random_pairs((6, 5, 7), seed=4, sets=2, same_end=False, changed=3)
        native = PathPatchingOracle(weights.config, weights.state)
        hand = FeaturePatchingOracle(
            native, module, f"{site_of_hook(hook)}.{layer}", f"{site_of_hook(hook)}.{layer}", pairs
        )
        engine = Engine(model, as_task(pairs))
        return SimpleNamespace(
            model=model,
            sae=sae,
            engine=engine,
            places=resolve_positions(engine.task, POSITIONS),
            hand=hand,
        )

    return of


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("hook_resid_pre", 1),
        *(pytest.param(hook, 0, marks=pytest.mark.slow) for hook in HOOKS),
    ],
)
def test_every_number_is_what_a_slow_computation_gives(random_case, hook, layer):
    case = random_case(hook, layer)
    features, hand = (2, 7), case.hand
    found = measure_exchange(case.engine, case.sae, case.places, features, draws=0, seed=0, top=2)
    for i, feature in enumerate(features):
        wanted = hand.exchange_effects(feature)
        for values, expected in zip(
            (found.noised, found.denoised, found.removed, found.activation), wanted, strict=True
        ):
            torch.testing.assert_close(values[:, i].double(), expected, **CLOSE)
    nodes = case.model.info.nodes()
    edges = measure_feature_edges(case.engine, case.sae, case.places, features, nodes)
    clean = case.engine.baseline("clean").double()
    sources, targets = (
        kind(case.model.info, case.sae, nodes) for kind in (find_sources, find_targets)
    )
    assert len(edges) == len(features) * (len(sources) + len(targets))
    for edge in edges:
        if edge.target.kind == "feature":
            metric, along, own = hand.effect_on_feature(str(edge.source), edge.target.feature)
            torch.testing.assert_close(clean - edge.whole.double(), metric, **CLOSE)
            torch.testing.assert_close(edge.activation_change.double(), along, **CLOSE)
            torch.testing.assert_close(edge.activation_gap.double(), own, **CLOSE)
            continue
        assert tuple(edge.inputs) == slots_of(edge.target)
        for values, slots in (
            (edge.whole, slots_of(edge.target)),
            *((edge.inputs[slot], (slot,)) for slot in edge.inputs),
        ):
            expected = hand.effect_on_node(edge.source.feature, str(edge.target), slots)
            torch.testing.assert_close(clean - values.double(), expected, **CLOSE)


def test_attribution_is_the_slope_of_the_exchange(random_case):
    """Against a small exchange by finite differences, and integrated over the way against the whole."""
    case = random_case("hook_resid_post", 0)
    hand = case.hand
    found = rank_by_attribution(case.engine, case.sae, case.places, 1, 20)
    for i, feature in list(enumerate(found.features))[:4]:
        rows = []
        for pair in hand.pairs:
            clean, _ = hand.sides(pair)
            (_, here), (_, there) = hand.contributions(pair)
            step = 1e-4 * (here - there)[:, feature]
            rows.append(
                (
                    hand.metric_after_push(pair, clean, step, feature)
                    - hand.metric_after_push(pair, clean, -step, feature)
                )
                / 2e-4
            )
        torch.testing.assert_close(
            found.per_pair[:, i].double(), torch.stack(rows), atol=1e-4, rtol=1e-3
        )
    sums = found.per_pair.double().mean(0).abs()
    assert sums.tolist() == sorted(sums.tolist(), reverse=True)
    integrated = (
        rank_by_attribution(case.engine, case.sae, case.places, 64, 20).per_pair.double().sum(1)
    )
    whole = []
    for pair in hand.pairs:
        clean, _ = hand.sides(pair)
        (_, here), (_, there) = hand.contributions(pair)
        push = hand.at_positions(pair, there - here) @ hand.w["W_dec"]
        whole.append(
            hand.metric(pair, hand.native.sites(clean)[0])
            - hand.metric(pair, hand.native.sites(clean, {hand.writes: push})[0])
        )
    torch.testing.assert_close(integrated, torch.stack(whole), atol=0.05, rtol=0.05)


def test_who_can_speak_to_a_feature_and_whom_it_can_tell(random_case):
    def ends(hook, layer):
        case = random_case(hook, layer)
        nodes = case.model.info.nodes()
        return [
            " ".join(map(str, kind(case.model.info, case.sae, nodes)))
            for kind in (find_sources, find_targets)
        ]

    assert ends("hook_resid_pre", 1) == [
        "embed a0.h0 a0.h1 a0.h2 m0",
        "a1.h0 a1.h1 a1.h2 m1 logits",
    ]
    assert ends("hook_resid_mid", 0) == [
        "embed a0.h0 a0.h1 a0.h2",
        "m0 a1.h0 a1.h1 a1.h2 m1 logits",
    ]
    assert ends("hook_attn_out", 0) == ["a0.h0 a0.h1 a0.h2", "m0 a1.h0 a1.h1 a1.h2 m1 logits"]
    assert ends("hook_mlp_out", 0) == ["m0", "a1.h0 a1.h1 a1.h2 m1 logits"]
    assert ends("hook_resid_post", 1) == [
        "embed a0.h0 a0.h1 a0.h2 m0 a1.h0 a1.h1 a1.h2 m1",
        "logits",
    ]


ASKED, OTHER = 5, 6


def with_fixed_tokens(pair):
    """The pair with its tokens exchanged so that the one that is asked about is always the same: words mean nothing to the model."""
    new = {token: token for token in range(25)}
    differ = next({a, b} for a, b in zip(pair.clean, pair.corrupted, strict=True) if a != b)
    for wanted, given in ((ASKED, pair.clean[-1]), (OTHER, (differ - {pair.clean[-1]}).pop())):
        here = next(token for token, now in new.items() if now == wanted)
        new[given], new[here] = wanted, new[given]
    told = {
        side: tuple(new[token] for token in getattr(pair, side))
        for side in ("clean", "corrupted", "answer", "wrong")
    }
    return replace(pair, **told)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The induction model and a dictionary of the stream's own directions between its two layers."""
    folder = tmp_path_factory.mktemp("induction")
    case = build_known_circuit("induction")
    case.save(folder / "model")
    model = load_model(folder / "model", device="cpu")
    task = load_task(folder / "model" / "task.jsonl", model, pairs=32)
    task = replace(task, pairs=tuple(map(with_fixed_tokens, task.pairs)))
    d_model = case.layout.d_model
    order = torch.randperm(2 * d_model, generator=torch.Generator().manual_seed(3))
    number = {
        int(place): feature for feature, place in enumerate(order.tolist()) if place < d_model
    }
    module = directions_module(
        signed_basis(d_model)[order], "blocks.1.hook_resid_pre", neuronpedia_id="toy/1"
    )
    sae = load_sae(save(module, folder / "sae"), model)
    circuit = CircuitGraph(
        model=ModelFacts(
            name="induction", fingerprint=model.info.fingerprint, n_layers=2, n_heads=4
        ),
        task=TaskFacts(name=task.name, metric=task.metric, fingerprint=task.fingerprint),
        verdict="verified",
        nodes=tuple(CircuitNode.of(name) for name in load_truth("induction").nodes),
        edges=(
            CircuitEdge(
                source=load_truth("induction").nodes[0], target=load_truth("induction").nodes[1]
            ),
        ),
    )
    made = add_features(model, circuit, task, sae, k=3)
    return SimpleNamespace(
        model=model,
        task=task,
        sae=sae,
        circuit=circuit,
        made=made,
        number=number,
        layout=case.layout,
        folder=folder,
    )


def test_the_planted_features_are_the_ones_between_the_heads(planted):
    """The previous-token head writes the subspace `prev`, the induction head reads it through its keys: these features are the nodes."""
    made, circuit = planted.made, planted.made.circuit
    previous, matcher = load_truth("induction").nodes
    wanted = planted.number[planted.layout.content("prev")[ASKED - 1]]
    node = next(node for node in circuit.nodes if node.feature and node.feature.index == wanted)
    held = [candidate for candidate in made.candidates if candidate.why is None]
    assert made.candidates[0].node == node.node
    assert {str(one.node) for one in held} == {str(one) for one in circuit.features}
    assert node.effect.noising.mean > 0.9
    assert node.feature.activation.mean > 0.9
    into = next(edge for edge in circuit.edges if (edge.source, edge.target) == (previous, node.id))
    assert set(into.inputs) == {"feature"}
    assert into.effect.mean == pytest.approx(
        node.effect.noising.mean, abs=0.1
    )  # all of it comes from this head
    assert into.activation.mean == pytest.approx(1, abs=0.1)
    out = next(edge for edge in circuit.edges if (edge.source, edge.target) == (node.id, matcher))
    assert abs(out.inputs["k"].mean) > 10 * max(
        abs(out.inputs["q"].mean), abs(out.inputs["v"].mean)
    )
    assert out.effect.mean == pytest.approx(
        node.effect.noising.mean, abs=0.1
    )  # and all of it goes to the keys
    assert not any((edge.source, edge.target) == (node.id, "logits") for edge in circuit.edges)
    assert node.feature.link == f"https://neuronpedia.org/toy/1/{node.feature.index}"
    assert node.evidence == (made.result_id,)


def test_the_verdict_and_the_circuit_stay_as_they_were(planted):
    made, before = planted.made.circuit, planted.circuit
    assert (made.verdict, made.members, made.size, made.evaluation) == (
        before.verdict,
        before.members,
        before.size,
        before.evaluation,
    )
    assert [edge for edge in made.edges if "f" not in (edge.source[0], edge.target[0])] == list(
        before.edges
    )
    [known_one] = made.dictionaries
    assert "no verdict" in known_one.note
    assert (known_one.layer, known_one.site, known_one.d_sae) == (1, "resid_pre", planted.sae.d_sae)
    assert known_one.variance_explained == pytest.approx(1, abs=1e-5)
    assert (known_one.found_on, known_one.verified_on) == (
        len(planted.task.discovery),
        len(planted.task.heldout),
    )
    assert known_one.candidates[0] == str(planted.made.candidates[0].node)


@pytest.mark.parametrize(
    ("source", "effect", "activation", "wanted"),
    [
        ("f1.3", (0.02, 0.01, 0.03), None, True),
        ("f1.3", (0.009, 0.008, 0.010), None, False),  # of a feature that does 0.5 alone
        ("f1.7", (0.009, 0.008, 0.010), None, True),  # of one that does 0.03: nearly a third of it
        ("f1.7", (-0.009, -0.010, -0.008), None, True),
        ("f1.7", (0.002, 0.001, 0.003), None, False),
        ("f1.7", (0.009, -0.001, 0.019), None, False),
        ("a0.h1", (0.0, 0.0, 0.0), (0.06, 0.05, 0.07), True),
        ("a0.h1", (0.5, 0.4, 0.6), (0.04, 0.03, 0.05), False),
        ("a0.h1", (0.5, 0.4, 0.6), (0.5, -0.1, 1.1), False),
    ],
)
def test_which_edges_are_kept(source, effect, activation, wanted):
    """Out of a feature 0.01 of the metric or a tenth of what the feature does; into one 0.05 of its way."""
    target = "m1" if activation is None else "f1.7"

    def of(values):
        return Effect(mean=values[0], low=values[1], high=values[2])

    edge = CircuitEdge(
        source=source, target=target, effect=of(effect), activation=activation and of(activation)
    )
    own = None if activation is None else torch.ones(2)
    told = FeatureEdgeEffect(Node.parse(source), Node.parse(target), torch.zeros(2), {}, own, own)
    assert _edge_holds(edge, told, {"f1.3": 0.5, "f1.7": 0.03}) is wanted


def test_measured_again_they_replace_what_was_there(planted):
    again = add_features(planted.model, planted.made.circuit, planted.task, planted.sae, k=3)
    assert again.circuit == planted.made.circuit
    none = add_features(
        planted.model, planted.made.circuit, planted.task, planted.sae, k=1, positions=[0]
    )
    assert none.circuit.features == ()
    assert len(none.circuit.dictionaries) == 1
    assert none.circuit.edges == planted.circuit.edges


def test_candidates_that_do_not_hold_say_why(planted):
    told = [one.why for one in planted.made.candidates if one.why]
    assert told
    assert all(
        any(word in why for word in ("below 0.01", "holds 0", "chance", "pushes")) for why in told
    )
    few = replace(planted.task, pairs=planted.task.pairs[:4], splits=(None,) * 4)
    made = add_features(planted.model, planted.circuit, few, planted.sae, k=5, controls=0)
    assert made.circuit.features == ()
    assert any("chance" in (one.why or "") for one in made.candidates)
    assert any("not split" in warning for warning in made.warnings)
    assert any("other pairs" in warning for warning in made.warnings)


def test_the_record_travels_through_every_format(planted):
    circuit = planted.made.circuit
    assert CircuitGraph.from_json(circuit.to_json()) == circuit
    assert CircuitGraph.from_graphml(circuit.to_graphml()) == circuit
    first = str(circuit.features[0])
    assert f'"{first}"' in circuit.to_dot()
    assert "shape=hexagon" in circuit.to_dot()
    assert f"{first.replace('.', '_')}{{{{" in circuit.to_mermaid()


def test_arrays_hold_every_pair(planted):
    arrays, made = planted.made.arrays, planted.made
    assert arrays["noised"].shape == (len(planted.task.heldout), len(made.candidates))
    assert arrays["edges"].shape == (len(planted.task.discovery), len(made.edges))
    clean = Engine(planted.model, planted.task.heldout).baseline("clean")
    corrupted = Engine(planted.model, planted.task.heldout).baseline("corrupted")
    share = (clean - arrays["noised"][:, 0]).mean() / (clean - corrupted).mean()
    assert float(share) == pytest.approx(made.candidates[0].noising.mean, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 2.5}, "k is 2.5"),
        ({"steps": 0}, "steps is 0"),
        ({"controls": -1}, "controls is -1"),
        ({"positions": []}, "positions is"),
        ({"circuit": CircuitGraph(verdict="no_behaviour")}, "no_behaviour"),
        ({"circuit": CircuitGraph(model=ModelFacts(fingerprint="0" * 64))}, "other weights"),
    ],
)
def test_bad_input(planted, change, said):
    given = {"circuit": planted.circuit, **change}
    with pytest.raises(MeasurementError, match=said):
        add_features(planted.model, given.pop("circuit"), planted.task, planted.sae, **given)


def test_sides_that_do_not_differ_and_dictionaries_of_queries_are_refused(
    planted, tiny_models, tmp_path
):
    pairs = tuple(replace(pair, corrupted=pair.clean) for pair in planted.task.pairs)
    with pytest.raises(MeasurementError, match="do not differ"):
        add_features(
            planted.model, planted.circuit, replace(planted.task, pairs=pairs), planted.sae
        )
    model = tiny_models.load("native")
    queries = load_sae(
        save(random_module("standard", 18, 20, "blocks.1.attn.hook_q"), tmp_path / "q"), model
    )
    with pytest.raises(MeasurementError, match="no part of the residual stream"):
        add_features(model, CircuitGraph(), as_task(random_pairs((6, 6, 5))), queries)


def test_a_transcoder_hears_the_stream_and_speaks_as_an_mlp(tiny_models, tmp_path):
    model = tiny_models.load("native")
    module = random_module(
        "transcoder", 12, 24, "blocks.0.hook_resid_mid", hook_out="blocks.0.hook_mlp_out"
    )
    sae = load_sae(save(module, tmp_path / "sae"), model)
    nodes = model.info.nodes()
    assert [str(node) for node in find_sources(model.info, sae, nodes)] == [
        "embed",
        "a0.h0",
        "a0.h1",
        "a0.h2",
    ]
    assert [str(node) for node in find_targets(model.info, sae, nodes)] == [
        "a1.h0",
        "a1.h1",
        "a1.h2",
        "m1",
        "logits",
    ]
    made = add_features(
        model,
        CircuitGraph(nodes=(CircuitNode.of("a0.h1"),)),
        as_task(random_pairs((6,) * 8)),
        sae,
        k=3,
        controls=0,
    )
    assert all(
        Node.parse(name).site == "mlp_out" for name in made.circuit.dictionaries[0].candidates
    )
