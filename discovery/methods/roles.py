"""What each node of a circuit does, as far as measurements say it.

A role is a short name, such as "induction head", and it is given only together with the measurement
that it rests on. Three measurements give roles:

- `head_kinds`, on repeated random tokens: previous-token, duplicate-token, induction, local,
  copying and anti-copying heads. "First-token" is no role: heads rest there when they do nothing.
- The attention from the answer position of the task's clean prompts to the positions that hold the
  answer, against a head that looks everywhere equally.
- `direct_logit_attribution` on the same prompts: what a node adds straight to the logit difference,
  as a share of it.

A head that looks at the answer and adds to its logit is an *answer mover*, and a *negative answer
mover* if it takes from it; in ioi these are the (negative) name movers of Wang et al. (2022). Any
other node whose direct contribution is large *writes the answer*, or *writes against the answer*.

Every measurement is tested over sequences or pairs and corrected (Holm) for the heads or nodes that
were tested, and must exceed a stated minimum. A node for which nothing does has no role.

    from discovery import load_model, load_task
    from discovery.methods.roles import measure_roles
    model = load_model("bundled")
    measure_roles(model, load_task("ioi", model, pairs=16), ["a2.h0", "m3"]).evidence
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.errors import MeasurementError, MemoryLimitError, SiteError
from discovery.methods.ablation import parse_nodes
from discovery.methods.heads import head_kinds
from discovery.methods.heads.attention_patterns import read_rows
from discovery.methods.heads.kinds import p_above
from discovery.methods.readout import direct_logit_attribution
from discovery.methods.statistics import Interval, Resamples, holm, interval_of_mean
from discovery.sites import Node
from discovery.tasks.task import EncodedPair, Task

RoleSource = Literal["head_kinds", "answer_attention", "direct_attribution"]
ROLE_SOURCES: tuple[RoleSource, ...] = get_args(RoleSource)

KIND_SEQUENCES = 24  # as `head_kinds` takes by default, so that both give the same numbers
ALPHA = 0.05
MIN_ATTENTION = 0.2
"""How far above chance the attention to the answer must be for a role."""
MIN_DIRECT_SHARE = 0.05
"""The least absolute share of the logit difference that a node must add by itself for a role."""
MIN_LOGIT_DIFFERENCE = 1e-6  # a smaller one is too small to divide by

KIND_ROLES: Mapping[str, str] = {
    "previous_token": "previous-token head",
    "duplicate_token": "duplicate-token head",
    "induction": "induction head",
    "local": "local head",
    "copying": "copying head",
    "anti_copying": "anti-copying head",
}
MOVER, NEGATIVE_MOVER = "answer mover", "negative answer mover"
WRITER, NEGATIVE_WRITER = "writes the answer", "writes against the answer"
TASK_NAMES: Mapping[str, Mapping[str, str]] = {
    "ioi": {MOVER: "name mover", NEGATIVE_MOVER: "negative name mover"}
}
"""What a task's own literature calls some roles."""

_IMPLIED_BY: Mapping[str, tuple[str, ...]] = {
    "local head": ("previous-token head",),
    "copying head": (MOVER,),
    "anti-copying head": (NEGATIVE_MOVER,),
}


@dataclass(frozen=True, kw_only=True)
class RoleEvidence:
    """One measurement that gives a node its role.

    Attributes:
        role: the role that it gives, such as "induction head".
        measure: what was measured, in words.
        source: the function that measured it.
        value: the measurement with its 95% interval.
        chance: the same by chance.
        p: the p-value of not being chance, corrected for all that were tested.
    """

    role: str
    measure: str
    source: RoleSource
    value: Interval
    chance: float
    p: float


@dataclass(frozen=True, kw_only=True)
class RoleReport:
    """What the nodes of a circuit do.

    Attributes:
        evidence: for each node that has a role, its measurements; a node without one is not there.
        arrays: what was measured of all nodes, by source: head_kinds {kind: [layer head]},
            answer_attention {attention, chance: [pair head]}, direct_attribution {share: [pair
            node]}.
        columns: for each source, the nodes in the order of its last axis.
        warnings: what was not measured, and why.
        cost: the work and the time that it took.
    """

    evidence: Mapping[str, tuple[RoleEvidence, ...]]
    arrays: Mapping[RoleSource, Mapping[str, Tensor]] = field(repr=False)
    columns: Mapping[RoleSource, tuple[str, ...]] = field(repr=False)
    warnings: tuple[str, ...]
    cost: MeasurementCost

    def role(self, node: str) -> str | None:
        """Return the role of a node in words; None if nothing is known."""
        return join_roles(item.role for item in self.evidence.get(node, ()))


def join_roles(roles: Iterable[str]) -> str | None:
    """Join roles to one text, each once; None if there are none."""
    return "; ".join(dict.fromkeys(roles)) or None


def estimate_roles(n_pairs: int) -> float:
    """Return about how many forward-pass equivalents the roles of a circuit cost.

    That is a pass for each sequence of `head_kinds` and for its control, and two for each pair. How
    many nodes there are does not matter.
    """
    return 2.0 * KIND_SEQUENCES + 2.0 * n_pairs


def measure_roles(
    model: Backend,
    task: Task,
    nodes: Sequence[str | Node],
    *,
    seed: int = 0,
    memory: int | None = None,
    meter: Meter | None = None,
    engine: Engine | None = None,
) -> RoleReport:
    """Measure what some heads and MLPs do on a task.

    What cannot be measured on this model (attention patterns, weights on another machine) gives no
    role, and a warning says so.

    Args:
        model: the model.
        task: the pairs on whose clean prompts the nodes are looked at.
        nodes: heads and MLPs; tests are corrected for their number.
        seed: the seed of the random tokens.
        memory: bytes that caches and batches may take; 60% of the free memory by default.
        meter: counts the work; a new one if None.
        engine: the model and the task, if they were loaded before, with the same meter.

    Raises:
        BudgetError: if the meter has a limit that does not suffice. Nothing was measured then.
    """
    began = time.monotonic()
    chosen = sorted(parse_nodes(model, nodes))
    own_meter = meter or Meter()
    own = engine or Engine(model, task, memory=memory, meter=own_meter)
    timer = CostTimer(own_meter, began)
    own_meter.begin("roles", estimate_roles(len(task)))
    work = _RoleWork(
        model=model, task=task, nodes=chosen, engine=own, seed=seed, memory=memory, meter=own_meter
    )
    for measure in (work.measure_kinds, work.measure_attention, work.measure_attribution):
        try:
            measure()
        except (MeasurementError, SiteError, MemoryLimitError) as fault:
            work.warnings.append(f"Roles lack a measurement: {fault.cause}")
    return RoleReport(
        evidence=work.collect(),
        arrays=work.arrays,
        columns=work.columns,
        warnings=tuple(work.warnings),
        cost=timer.cost,
    )


@dataclass(kw_only=True)
class _RoleWork:
    """Measures, and keeps what each node was found to do."""

    model: Backend
    task: Task
    nodes: Sequence[Node]
    engine: Engine
    seed: int
    memory: int | None
    meter: Meter
    warnings: list[str] = field(default_factory=list)
    arrays: dict[RoleSource, dict[str, Tensor]] = field(default_factory=dict)
    columns: dict[RoleSource, tuple[str, ...]] = field(default_factory=dict)
    kinds: dict[Node, list[RoleEvidence]] = field(default_factory=lambda: defaultdict(list))
    looks: dict[Node, RoleEvidence] = field(default_factory=dict)
    writes: dict[Node, RoleEvidence] = field(default_factory=dict)

    @property
    def heads(self) -> list[Node]:
        """The heads among the nodes."""
        return [node for node in self.nodes if node.kind == "attention_head"]

    def measure_kinds(self) -> None:
        """Find which kinds of heads the nodes are on repeated random tokens."""
        if not self.heads:
            return
        found = head_kinds(
            self.model,
            sequences=KIND_SEQUENCES,
            controls=0,
            top=0,
            seed=self.seed,
            memory=self.memory,
            progress=self.meter.progress,
        )
        self.meter.add(found.cost.forward_equivalents)
        self.warnings += found.warnings
        self.arrays["head_kinds"] = dict(found.scores)
        self.columns["head_kinds"] = ()
        for node in self.heads:
            for kind, score in found.of(str(node)):
                if kind in KIND_ROLES:
                    evidence = RoleEvidence(
                        role=KIND_ROLES[kind],
                        measure=f"{kind.replace('_', ' ')} score on repeated random tokens",
                        source="head_kinds",
                        value=score.score,
                        chance=score.chance,
                        p=score.p,
                    )
                    self.kinds[node].append(evidence)

    def measure_attention(self) -> None:
        """Measure which heads look at the answer from the answer position."""
        pairs = self.task.pairs
        with_answer = [number for number, pair in enumerate(pairs) if _answer_positions(pair)]
        if not self.heads or len(with_answer) < 2:
            return  # the prompts of agreement or greater_than do not hold their answers
        shares = self._read_answer_shares()[with_answer].numpy()
        chance = np.array(
            [
                len(_answer_positions(pairs[number])) / len(pairs[number].clean)
                for number in with_answer
            ]
        )
        self.arrays["answer_attention"] = {
            "attention": torch.tensor(shares),
            "chance": torch.tensor(chance),
        }
        self.columns["answer_attention"] = tuple(map(str, self.heads))
        present = tuple(pairs[number] for number in with_answer)
        resamples = Resamples.of(replace(self.task, pairs=present, splits=(None,) * len(present)))
        p_values = holm(p_above(shares - chance[:, None]).tolist())
        for node, column, p in zip(self.heads, shares.T, p_values, strict=True):
            if p <= ALPHA and float((column - chance).mean()) >= MIN_ATTENTION:
                self.looks[node] = RoleEvidence(
                    role=MOVER,
                    measure="attention from the answer position to the answer",
                    source="answer_attention",
                    value=interval_of_mean(torch.tensor(column), resamples),
                    chance=float(chance.mean()),
                    p=p,
                )

    def _read_answer_shares(self) -> Float[Tensor, "pair head"]:
        """Return how much each head looks at the answer from the answer position."""
        pairs = self.task.pairs
        queries = [len(pair.clean) - 1 for pair in pairs]
        rows, _ = read_rows(self.engine, self.heads, queries, keep_whole=False)
        held = [
            row[:, _answer_positions(pair)].sum(1) for row, pair in zip(rows, pairs, strict=True)
        ]
        return torch.stack(held).double()

    def measure_attribution(self) -> None:
        """Measure what each node adds to the logit difference by itself."""
        found = direct_logit_attribution(
            self.model, self.task, memory=self.memory, progress=self.meter.progress
        )
        self.meter.add(found.cost.forward_equivalents)
        total = found.logit_difference.mean
        if total < MIN_LOGIT_DIFFERENCE:
            self.warnings.append(
                f"No node was said to write the answer: the logit difference is {total:.3g}."
            )
            return
        names = [part.part for part in found.contributions]
        shares = found.per_pair[:, [names.index(str(node)) for node in self.nodes]] / total
        self.arrays["direct_attribution"] = {"share": shares}
        self.columns["direct_attribution"] = tuple(map(str, self.nodes))
        resamples = Resamples.of(self.task)
        tails = np.minimum(p_above(shares.numpy()), p_above(-shares.numpy()))
        p_values = holm(np.minimum(2 * tails, 1.0).tolist())
        for node, column, p in zip(self.nodes, shares.T, p_values, strict=True):
            value = interval_of_mean(column, resamples)
            if p <= ALPHA and abs(value.mean) >= MIN_DIRECT_SHARE:
                self.writes[node] = RoleEvidence(
                    role=WRITER if value.mean > 0 else NEGATIVE_WRITER,
                    measure="share of the logit difference that it adds directly",
                    source="direct_attribution",
                    value=value,
                    chance=0.0,
                    p=p,
                )

    def collect(self) -> dict[str, tuple[RoleEvidence, ...]]:
        """Return the evidence of each node that has a role."""
        evidence = {}
        for node in self.nodes:
            items = [*self.kinds.get(node, ()), *self._output_roles(node)]
            roles = {item.role for item in items}
            kept = [item for item in items if roles.isdisjoint(_IMPLIED_BY.get(item.role, ()))]
            if kept:
                own_names = TASK_NAMES.get(self.task.name, {})
                evidence[str(node)] = tuple(
                    replace(item, role=own_names.get(item.role, item.role)) for item in kept
                )
        return evidence

    def _output_roles(self, node: Node) -> list[RoleEvidence]:
        """Return whether a node moves or writes the answer. Looking at it alone is no role."""
        writes, looks = self.writes.get(node), self.looks.get(node)
        if writes is None:
            return []
        if looks is None:
            return [writes]
        role = MOVER if writes.role == WRITER else NEGATIVE_MOVER
        return [replace(looks, role=role), replace(writes, role=role)]


def _answer_positions(pair: EncodedPair) -> list[int]:
    """Return where the clean prompt holds an answer."""
    return [number for number, token in enumerate(pair.clean) if token in pair.answer]
