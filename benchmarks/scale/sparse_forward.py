"""f of any set of nodes of a large hand-built model, measured without `discovery`.

A node outside a set has a value that is known before the pass, so only the nodes inside are
computed: a set of five nodes costs the same among 1,056 nodes as among 20. The definitions are
those of `benchmarks.known_circuits.truth`, against whose plain forward pass the tests compare f.
Prompts of different lengths share a batch: they are padded behind the last token, which no earlier
position can see.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.known_circuits.known_circuit import KnownCircuit
from benchmarks.known_circuits.truth import ABLATIONS, Ablation

PAIRS_PER_TEMPLATE = 8


@dataclass(frozen=True, kw_only=True)
class AblationValues:
    """What an ablation puts in place of the nodes.

    Attributes:
        heads: for each layer, [head pair pos d_model].
        mlps: for each layer, [pair pos d_model].
        layer_sums: for each layer, the sum of its heads' values, [pair pos d_model].
    """

    heads: tuple[Tensor, ...]
    mlps: tuple[Tensor, ...]
    layer_sums: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class ForwardResult:
    """The logits at each prompt's last position, [pair d_vocab], and the values of all nodes."""

    logits: Tensor
    heads: tuple[Tensor, ...]
    mlps: tuple[Tensor, ...]


@dataclass(kw_only=True)
class PartialRun:
    """A pass through the model that has come to some layer.

    Attributes:
        forward: the model.
        resid: the residual stream, [… pair pos d_model].
        heads: for each layer, the heads that are kept.
        mlps: the layers whose MLP is kept.
        reference: what takes the place of all other nodes.
    """

    forward: SparseForward
    resid: Tensor
    heads: Mapping[int, set[int]]
    mlps: set[int]
    reference: AblationValues

    def enter_mlp(self, layer: int) -> None:
        """Add what the heads of a layer write."""
        written = self.reference.layer_sums[layer]
        kept = sorted(self.heads.get(layer, ()))
        if kept:
            computed = self.forward.attend(layer, self.resid, kept).sum(0)
            written = computed + written - self.reference.heads[layer][kept].sum(0)
        self.resid = self.resid + written + self.forward.output_bias(layer)

    def leave_layer(self, layer: int) -> None:
        """Add what the MLP of a layer writes."""
        self.resid = self.resid + (
            self.forward.feed_forward(layer, self.resid)
            if layer in self.mlps
            else self.reference.mlps[layer]
        )


class SparseForward:
    """Measures the metric of a model of attention and MLPs without norms, with some nodes ablated.

    Args:
        circuit: the model and its task.
        per_template: how many pairs of each template to measure. The means of mean ablation are
            over all pairs of the template, without the pair itself.
    """

    def __init__(self, circuit: KnownCircuit, per_template: int = PAIRS_PER_TEMPLATE) -> None:
        if circuit.config["normalization_type"] is not None or circuit.config["attn_only"]:
            raise ValueError(
                f"{circuit.name} has norms or no MLPs. Only models without norms and with MLPs"
                " can be measured here: use benchmarks.known_circuits.truth for others."
            )
        self.circuit = circuit
        self.state = circuit.state
        self.n_layers = circuit.config["n_layers"]
        self.n_heads = circuit.config["n_heads"]
        groups: dict[str, list[int]] = {}
        for index, pair in enumerate(circuit.pairs):
            groups.setdefault(pair.template, []).append(index)
        self.groups = tuple(tuple(group) for group in groups.values())
        measured = [index for group in self.groups for index in group[:per_template]]
        self.pairs = [circuit.pairs[index] for index in measured]
        self.measured = torch.tensor(measured)
        self.clean, self.last = _pad([pair.clean for pair in self.pairs])
        self._empty = {ablation: self.metric((), ablation) for ablation in ABLATIONS}
        self._full = self.metric(circuit.universe, "resample")

    @cached_property
    def references(self) -> Mapping[Ablation, AblationValues]:
        """The replacement values of every node under each ablation."""
        values = self._run_plainly([pair.corrupted for pair in self.circuit.pairs])
        means = ForwardResult(
            logits=values.logits,
            heads=tuple(self._mean_of_others(value) for value in values.heads),
            mlps=tuple(self._mean_of_others(value[None])[0] for value in values.mlps),
        )
        return {"resample": self._pick(values), "mean": self._pick(means)}

    def metric_by_pair(self) -> tuple[Tensor, Tensor]:
        """Return the metric of all pairs on the clean and on the corrupted side, [pair]."""
        pairs = self.circuit.pairs
        rows = torch.arange(len(pairs))
        answers = [pair.answer for pair in pairs]
        wrongs = [pair.wrong for pair in pairs]
        sides = []
        for prompts in ([pair.clean for pair in pairs], [pair.corrupted for pair in pairs]):
            logits = self._run_plainly(prompts).logits
            sides.append(logits[rows, answers] - logits[rows, wrongs])
        return sides[0], sides[1]

    def f(self, nodes: Collection[str], ablation: Ablation) -> float:
        """Return f of a set of nodes."""
        empty = self._empty[ablation]
        return (self.metric(nodes, ablation) - empty) / (self._full - empty)

    def metric(self, nodes: Collection[str], ablation: Ablation) -> float:
        """Return the mean of logit(answer) − logit(wrong) over pairs, all other nodes ablated."""
        run = self._start(nodes, ablation)
        for layer in range(self.n_layers):
            run.enter_mlp(layer)
            run.leave_layer(layer)
        return float(self._mean_metric(run.resid))

    def f_with_one_changed(
        self, context: Collection[str], candidates: Collection[str], ablation: Ablation
    ) -> dict[str, float]:
        """Return f of a set S with one node added, or removed if S has it, for every candidate.

        The nodes of one layer share a batch, which starts at their layer.
        """
        values: dict[str, float] = {}
        run = self._start(context, ablation)
        for layer in range(self.n_layers):
            entering = run.resid
            run.enter_mlp(layer)
            names = {f"a{layer}.h{head}": head for head in range(self.n_heads)}
            changing = {name: head for name, head in names.items() if name in candidates}
            if changing:
                heads = list(changing.values())
                change = self.attend(layer, entering, heads) - run.reference.heads[layer][heads]
                signs = torch.tensor([-1.0 if name in context else 1.0 for name in changing])
                variants = run.resid + signs[:, None, None, None] * change
                finished = self._finish(run, variants, layer, at_mlp=True)
                values |= dict(zip(changing, finished, strict=True))
            before_mlp = run.resid
            run.leave_layer(layer)
            name = f"m{layer}"
            if name in candidates:
                change = self.feed_forward(layer, before_mlp) - run.reference.mlps[layer]
                variant = run.resid + (-change if name in context else change)
                values[name] = self._finish(run, variant[None], layer, at_mlp=False)[0]
        empty = self._empty[ablation]
        return {node: (value - empty) / (self._full - empty) for node, value in values.items()}

    def _start(self, nodes: Collection[str], ablation: Ablation) -> PartialRun:
        heads, mlps = _split_by_layer(nodes)
        return PartialRun(
            forward=self,
            resid=self._embed(self.clean),
            heads=heads,
            mlps=mlps,
            reference=self.references[ablation],
        )

    def _finish(self, run: PartialRun, resid: Tensor, layer: int, *, at_mlp: bool) -> list[float]:
        """Take variants of the residual stream [variant pair pos d_model] to the end.

        Args:
            run: says which nodes are kept.
            resid: the variants, before the MLP of `layer` or behind it.
            layer: the layer.
            at_mlp: whether that MLP is still to come.
        """
        rest = replace(run, resid=resid)
        if at_mlp:
            rest.leave_layer(layer)
        for later in range(layer + 1, self.n_layers):
            rest.enter_mlp(later)
            rest.leave_layer(later)
        return [float(value) for value in self._mean_metric(rest.resid)]

    def _mean_metric(self, resid: Tensor) -> Tensor:
        """Return the metric's mean over pairs for a residual stream [… pair pos d_model]."""
        rows = torch.arange(len(self.pairs))
        logits = self._read_out(resid, self.last)
        answers = [pair.answer for pair in self.pairs]
        wrongs = [pair.wrong for pair in self.pairs]
        return (logits[..., rows, answers] - logits[..., rows, wrongs]).double().mean(-1)

    def _run_plainly(self, prompts: list[tuple[int, ...]]) -> ForwardResult:
        tokens, last = _pad(prompts)
        every_head = list(range(self.n_heads))
        heads = []
        mlps = []
        resid = self._embed(tokens)
        for layer in range(self.n_layers):
            heads.append(self.attend(layer, resid, every_head))
            resid = resid + heads[-1].sum(0) + self.output_bias(layer)
            mlps.append(self.feed_forward(layer, resid))
            resid = resid + mlps[-1]
        return ForwardResult(
            logits=self._read_out(resid, last), heads=tuple(heads), mlps=tuple(mlps)
        )

    def _pick(self, values: ForwardResult) -> AblationValues:
        """Keep the values of the pairs that are measured."""
        heads = tuple(value[:, self.measured] for value in values.heads)
        return AblationValues(
            heads=heads,
            mlps=tuple(value[self.measured] for value in values.mlps),
            layer_sums=tuple(value.sum(0) for value in heads),
        )

    def _mean_of_others(self, values: Tensor) -> Tensor:
        """Average values [head pair pos d_model] over the other pairs of each pair's template."""
        means = torch.zeros_like(values)
        for group in self.groups:
            members = values[:, list(group)]
            total = members.sum(1, keepdim=True)
            means[:, list(group)] = (total - members) / (len(group) - 1)
        return means

    def _embed(self, tokens: Tensor) -> Tensor:
        positions = self.state["pos_embed.W_pos"][: tokens.shape[1]]
        return self.state["embed.W_E"][tokens] + positions

    def output_bias(self, layer: int) -> Tensor:
        """Return b_O of a layer, which is never ablated, [d_model]."""
        return self.state[f"blocks.{layer}.attn.b_O"]

    def attend(self, layer: int, resid: Tensor, heads: list[int]) -> Tensor:
        """Return the values of some heads of a layer, [head … pair pos d_model].

        Args:
            layer: the layer.
            resid: what the heads read, [… pair pos d_model].
            heads: the numbers of the heads.
        """
        block = f"blocks.{layer}.attn"

        def project(letter: str) -> Tensor:  # [head (… pair) pos d_head]
            weight = self.state[f"{block}.W_{letter}"][heads]
            bias = self.state[f"{block}.b_{letter}"][heads].flatten()
            # One matrix product for all heads is faster than one for each.
            projected = rows @ weight.permute(1, 0, 2).flatten(1) + bias
            return projected.unflatten(-1, (len(heads), -1)).permute(2, 0, 1, 3)

        rows = resid.flatten(0, -3)  # [(… pair) pos d_model]

        queries = project("Q")
        scores = queries @ project("K").transpose(-1, -2) / math.sqrt(queries.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        z = scores.masked_fill(future, -math.inf).softmax(-1) @ project("V")
        values = z.flatten(1, 2) @ self.state[f"{block}.W_O"][heads]
        return values.unflatten(1, resid.shape[:-1])

    def feed_forward(self, layer: int, resid: Tensor) -> Tensor:
        mlp = f"blocks.{layer}.mlp"
        hidden = (resid @ self.state[f"{mlp}.W_in"] + self.state[f"{mlp}.b_in"]).relu()
        return hidden @ self.state[f"{mlp}.W_out"] + self.state[f"{mlp}.b_out"]

    def _read_out(self, resid: Tensor, last: Tensor) -> Tensor:
        rows = resid[..., torch.arange(len(last)), last, :]
        return rows @ self.state["unembed.W_U"] + self.state["unembed.b_U"]


def _pad(prompts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Return prompts padded at the end, [pair pos], and the position of each one's last token."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
    return tokens, torch.tensor([len(prompt) - 1 for prompt in prompts])


def _split_by_layer(nodes: Iterable[str]) -> tuple[dict[int, set[int]], set[int]]:
    """Return the heads of each layer, and the layers of the MLPs."""
    heads: dict[int, set[int]] = {}
    mlps: set[int] = set()
    for node in nodes:
        if node.startswith("m"):
            mlps.add(int(node[1:]))
        else:
            layer, head = node[1:].split(".h")
            heads.setdefault(int(layer), set()).add(int(head))
    return heads, mlps
