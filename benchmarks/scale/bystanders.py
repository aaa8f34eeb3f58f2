"""Nodes that do not belong to the circuit but are not silent either.

Every bystander has a *share*: the largest part of the behaviour (of f) that it can add or take away
in any context. Shares follow a long-tailed distribution, log-normal with a cap, and half of them
are negative. What a bystander does with its share depends on where it stands:

- A *reader* is an induction head with a small gain. It reads `prev`, which the circuit's own
  previous-token head writes, so it is correlated with the circuit's inputs. Or it reads `SIDE`.
- A *source* is a previous-token head that writes some content tokens to `SIDE`. Several readers
  share it, and two sources may write the same token. So these bystanders act together.
- A *booster* is an MLP that strengthens weak sources. Without it their readers see too little.
- An *echo* is a head or an MLP that repeats what the circuit has written to `out`, with a small
  gain.
- A *weak carrier* is a previous-token head that writes to `prev` with a small gain.
- A *speck* has small random weights only. Its effect differs from pair to pair.

The first five carry small random weights too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.known_circuits.known_circuit import LayerWeights
from benchmarks.known_circuits.weights import (
    Head,
    HeadOutput,
    Mlp,
    distractor_head,
    distractor_mlp,
    echo_head,
    matching_head,
    previous_token_head,
    ramp_mlp,
)
from benchmarks.scale.constructions import SIDE, Construction

MAX_SHARE = 0.006  # of one bystander
MAX_SIDE_SHARE = 0.005  # of all readers of SIDE with the same sign, and so of a source
MAX_CARRIER_GAIN = 0.012  # of one weak carrier
MAX_CARRIER_SUM = 0.06  # of all weak carriers with the same sign
SHARE_SIGMA = 1.5  # of the logarithm of a share
TOTAL_SHARES = (0.03, 0.06)  # the range of the sum of all shares of one sign
SPECK_STD = 0.02  # of the random weights, with 156 nodes
REFERENCE_NODES = 156
RELATIVE_NOISE = 0.3  # of what a node with a share writes, beside its own direction
SOURCE_NOISE = 0.001
WEAK_SOURCE = 0.5  # the gain of a source that needs a booster
BOOST_CEILING = 0.5
MAX_SOURCES_OF_TOKEN = 2


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The shape of a large model: layers of heads with one MLP each."""

    n_layers: int
    n_heads: int

    @property
    def n_nodes(self) -> int:
        """The number of heads and MLPs."""
        return self.n_layers * (self.n_heads + 1)


@dataclass(frozen=True, kw_only=True)
class FreePlace:
    """A place in the model that the circuit leaves free. `number` is None for an MLP."""

    layer: int
    number: int | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each bystander does, before its weights are written.

    Attributes:
        jobs: place -> the name of its job.
        shares: place -> the signed share of a reader or an echo, or the gain of a weak carrier.
        tokens: place -> the gain of each content token, [n_content], of a source or a booster.
    """

    jobs: dict[FreePlace, str]
    shares: dict[FreePlace, float]
    tokens: dict[FreePlace, NDArray[np.float64]]


def list_free_places(geometry: Geometry, taken: set[tuple[int, int | None]]) -> Iterator[FreePlace]:
    """Yield the places that are not taken, layer by layer, each layer's MLP last."""
    for layer in range(geometry.n_layers):
        for number in (*range(geometry.n_heads), None):
            if (layer, number) not in taken:
                yield FreePlace(layer=layer, number=number)


def make_plan(
    construction: Construction,
    layers: list[int],
    places: list[FreePlace],
    rng: np.random.Generator,
) -> Plan:
    """Draw the job and the share of every bystander.

    Args:
        construction: the circuit.
        layers: the layer of each of its stages.
        places: the free places.
        rng: draws everything.
    """
    writer = layers[construction.writer_stage]
    jobs = {place: _draw_job(place, layers[0], writer, rng) for place in places}
    shares: dict[FreePlace, float] = {}
    direct = [place for place, job in jobs.items() if job in ("reader", "echo")]
    shares |= _draw_shares(direct, TOTAL_SHARES, MAX_SHARE, rng)
    aside = [place for place, job in jobs.items() if job == "side reader"]
    shares |= _draw_shares(aside, (MAX_SIDE_SHARE / 2, MAX_SIDE_SHARE), MAX_SIDE_SHARE, rng)
    weak = [place for place, job in jobs.items() if job == "weak carrier"]
    sums = (MAX_CARRIER_SUM / 2, MAX_CARRIER_SUM)
    shares |= _draw_shares(weak, sums, MAX_CARRIER_GAIN, rng)
    tokens = _draw_tokens(jobs, construction.layout.n_content, rng)
    return Plan(jobs=jobs, shares=shares, tokens=tokens)


def _draw_job(place: FreePlace, carrier: int, writer: int, rng: np.random.Generator) -> str:
    """Draw what a bystander does, from what there is to read and to write at its layer."""
    if place.number is None:
        if place.layer < writer:
            choices = {"booster": 0.6, "speck": 0.4}
        else:
            choices = {"echo": 0.7, "speck": 0.3}
    elif place.layer <= carrier:
        choices = {"source": 0.5, "weak carrier": 0.3, "speck": 0.2}
    elif place.layer <= writer:
        choices = {"reader": 0.5, "side reader": 0.25, "speck": 0.25}
    else:
        choices = {"reader": 0.3, "side reader": 0.1, "echo": 0.4, "speck": 0.2}
    return str(rng.choice(list(choices), p=list(choices.values())))


def _draw_shares(
    places: list[FreePlace], total: tuple[float, float], cap: float, rng: np.random.Generator
) -> dict[FreePlace, float]:
    """Draw signed long-tailed shares. Each sign's sum is drawn from the range `total`.

    A share above the cap is cut, so a sum can be smaller than what was drawn.
    """
    shares: dict[FreePlace, float] = {}
    signs = rng.permutation([1, -1] * (len(places) // 2 + 1))[: len(places)]
    for sign in (1, -1):
        members = [place for place, drawn in zip(places, signs, strict=True) if drawn == sign]
        sizes = rng.lognormal(0.0, SHARE_SIGMA, len(members))
        scale = float(rng.uniform(*total)) / max(float(sizes.sum()), 1e-9)
        capped = np.minimum(sizes * scale, cap)
        shares |= {place: float(sign * size) for place, size in zip(members, capped, strict=True)}
    return shares


def _draw_tokens(
    jobs: dict[FreePlace, str], n_content: int, rng: np.random.Generator
) -> dict[FreePlace, NDArray[np.float64]]:
    """Give each content token one or two sources, and a booster if its source is weak."""
    sources = [place for place, job in jobs.items() if job == "source"]
    boosters = [place for place, job in jobs.items() if job == "booster"]
    tokens = {place: np.zeros(n_content) for place in (*sources, *boosters)}
    if not sources:
        return tokens
    for token in range(n_content):
        count = min(int(rng.integers(1, MAX_SOURCES_OF_TOKEN + 1)), len(sources))
        chosen = [sources[index] for index in rng.choice(len(sources), count, replace=False)]
        helpers = [place for place in boosters if place.layer >= max(p.layer for p in chosen)]
        needs_boost = count == 1 and bool(helpers) and rng.random() < 0.7
        for place in chosen:
            tokens[place][token] = WEAK_SOURCE if needs_boost else 1.0
        if needs_boost:
            tokens[helpers[int(rng.integers(len(helpers)))]][token] = 1.0
    return tokens


def write_layers(
    construction: Construction,
    constructed: dict[tuple[int, int | None], Head | Mlp],
    plan: Plan,
    geometry: Geometry,
    rng: np.random.Generator,
) -> list[LayerWeights]:
    """Write the weights of all layers: the circuit's nodes at their places, bystanders elsewhere.

    Args:
        construction: the circuit.
        constructed: (layer, number) -> the weights of the circuit's node there; None is the MLP.
        plan: what each bystander does.
        geometry: the shape of the model.
        rng: draws the random weights.
    """
    std = SPECK_STD * (REFERENCE_NODES / geometry.n_nodes) ** 0.25
    weights = dict(constructed)
    for place in plan.jobs:
        weights[place.layer, place.number] = (
            _write_mlp(construction, plan, place, std, rng)
            if place.number is None
            else _write_head(construction, plan, place, std, rng)
        )
    layers = []
    for layer in range(geometry.n_layers):
        heads = [weights[layer, number] for number in range(geometry.n_heads)]
        mlp = weights[layer, None]
        assert isinstance(mlp, Mlp)
        layers.append(LayerWeights(tuple(h for h in heads if isinstance(h, Head)), mlp))
    return layers


def _write_head(
    construction: Construction,
    plan: Plan,
    place: FreePlace,
    std: float,
    rng: np.random.Generator,
) -> Head:
    layout = construction.layout
    job = plan.jobs[place]
    role = f"bystander: {job}"
    if job == "speck":
        blind_to = ("dead",) if "dead" in layout.extra else ()
        return replace(distractor_head(layout, rng, std, blind_to), role=role)
    if job == "source":
        source = previous_token_head(layout, (HeadOutput(SIDE),), role=role)
        gains = np.zeros(layout.d_head)
        gains[: layout.n_content] = plan.tokens[place]
        return _add_noise(replace(source, W_O=source.W_O * gains[:, None]), SOURCE_NOISE, rng)
    share = plan.shares[place]
    if job == "weak carrier":
        head = previous_token_head(layout, (HeadOutput("prev", share),), role=role)
    elif job == "echo":
        head = echo_head(layout, share * construction.net / construction.peak, role)
    else:
        gain = share * construction.net
        key = "prev" if job == "reader" else SIDE
        output = (HeadOutput("out", gain),)
        head = matching_head(layout, output, query=construction.query, key=key, role=role)
    return _add_noise(head, RELATIVE_NOISE * abs(share), rng)


def _write_mlp(
    construction: Construction,
    plan: Plan,
    place: FreePlace,
    std: float,
    rng: np.random.Generator,
) -> Mlp:
    layout = construction.layout
    job = plan.jobs[place]
    role = f"bystander: {job}"
    d_mlp = 2 * layout.n_content
    if job == "speck":
        return replace(distractor_mlp(layout, rng, std / 2, d_mlp), role=role)
    if job == "booster":
        gains = plan.tokens[place]
        noise = SOURCE_NOISE
        mlp = ramp_mlp(layout, SIDE, SIDE, gains, d_mlp=d_mlp, ceiling=BOOST_CEILING, role=role)
    else:
        gain = plan.shares[place] * construction.net / construction.peak
        gains = np.full(layout.n_content, gain)
        noise = RELATIVE_NOISE * abs(gain)
        mlp = ramp_mlp(layout, "out", "out", gains, d_mlp=d_mlp, role=role)
    return replace(mlp, W_out=mlp.W_out + rng.normal(0.0, noise, mlp.W_out.shape))


def _add_noise(head: Head, std: float, rng: np.random.Generator) -> Head:
    """Add random weights to what a head writes."""
    return replace(head, W_O=head.W_O + rng.normal(0.0, std, head.W_O.shape))
