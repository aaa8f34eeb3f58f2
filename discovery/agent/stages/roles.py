"""What the nodes of a circuit do, with the measurement behind each part of a role.

The parts come from `methods.roles` (kinds of heads, attention to the answer, direct logit
attribution); from the edges, for a node that does not write to the logits itself: the input of
another node that it feeds most; and from what the node does alone and in pairs: "opposing" lowers
the metric, "redundant" has partners that do its work, "hidden" has no effect alone, "joint" is
necessary but not sufficient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from discovery.agent.context import RunContext
from discovery.agent.state import State
from discovery.evaluation import thresholds
from discovery.graph import Effect, RoleMeasurement
from discovery.graph.base import mean_of
from discovery.methods.roles import RoleEvidence, RoleReport, join_roles, measure_roles
from discovery.sites import Node, Slot
from discovery.store import join_names

SLOT_NAMES: Mapping[Slot, str] = {"q": "queries", "k": "keys", "v": "values"}


@dataclass(frozen=True, kw_only=True)
class CircuitRoles:
    """The roles of a circuit's nodes.

    Attributes:
        labels: the role of each node that has one.
        measurements: for each of them, what its role rests on.
        warnings: what was not measured, and why.
        cost: the forward-pass equivalents that it took.
    """

    labels: Mapping[str, str]
    measurements: Mapping[str, tuple[RoleMeasurement, ...]]
    warnings: tuple[str, ...]
    cost: float


def describe_roles(state: State, context: RunContext) -> CircuitRoles:
    """Measure what the nodes of the circuit do, on the pairs that describe it.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    engine = context.description_engine
    report = measure_roles(
        context.model,
        engine.task,
        state.circuit,
        seed=context.seed,
        memory=context.settings.memory,
        meter=context.meter,
        engine=engine,
    )
    for source, arrays in report.arrays.items():
        metadata = {"nodes": join_names(report.columns[source])}
        context.save_arrays(f"roles-{source}", arrays, metadata)
    measurements = {name: _role_measurements(state, report, name) for name in state.circuit}
    return CircuitRoles(
        labels={
            name: role
            for name, items in measurements.items()
            if (role := join_roles(item.role for item in items))
        },
        measurements={name: items for name, items in measurements.items() if items},
        warnings=report.warnings,
        cost=report.cost.forward_equivalents,
    )


def _role_measurements(state: State, report: RoleReport, name: str) -> tuple[RoleMeasurement, ...]:
    """Return what the role of a node rests on; empty if it has none."""
    evidence = report.evidence.get(name, ())
    items = [_measurement_of(item) for item in evidence]
    if all(item.source != "direct_attribution" for item in evidence):
        items += _describe_strongest_input(state, name)
    return (*items, *_describe_action(state, name))


def _measurement_of(item: RoleEvidence) -> RoleMeasurement:
    return RoleMeasurement(
        role=item.role,
        measure=item.measure,
        mean=item.value.mean,
        low=item.value.low,
        high=item.value.high,
        chance=item.chance,
        p=item.p,
        evidence=f"roles-{item.source}",
    )


def _describe_strongest_input(state: State, name: str) -> list[RoleMeasurement]:
    """Return which input of another node the node feeds most, if the interval excludes 0."""
    largest: tuple[float, str, Effect, str] | None = None
    for edge in state.edges:
        if edge.source != name or edge.target == "logits":
            continue
        for slot, effect in edge.inputs.items():
            size = abs(effect.mean or 0.0)
            if size < thresholds.MIN_DROP or not _excludes_zero(effect):
                continue
            if largest is None or size > largest[0]:
                label = Node.parse(edge.target).label
                inputs = SLOT_NAMES.get(slot)
                fed = f"the {inputs} of {label}" if inputs else label
                largest = (size, fed, effect, ", ".join(edge.evidence))
    if largest is None:
        return []
    _, fed, effect, evidence = largest
    return [
        RoleMeasurement(
            role=f"feeds {fed}",
            measure=f"effect of the path into {fed}",
            mean=effect.mean,
            low=effect.low,
            high=effect.high,
            chance=0.0,
            evidence=evidence,
        )
    ]


def _excludes_zero(effect: Effect) -> bool:
    return (effect.low or 0.0) > 0 or (effect.high or 0.0) < 0


def _describe_action(state: State, name: str) -> list[RoleMeasurement]:
    """Return how a node acts alone and in pairs; empty if nothing about it is unusual."""
    action = _name_action(state, name)
    if action is None:
        return []
    if state.partners.get(name):
        return [
            RoleMeasurement(
                role=action,
                measure=f"loss of f without both, beyond that without each: at least "
                f"{thresholds.MAX_GAP_OUT}",
                evidence="sets-resample",
            )
        ]
    effect = state.effects[name]
    direction = "denoising" if action.startswith("redundant") else "noising"
    shown = effect.denoising if direction == "denoising" else effect.noising
    return [
        RoleMeasurement(
            role=action,
            measure=f"{direction} effect alone",
            mean=shown.mean if shown else None,
            low=shown.low if shown else None,
            high=shown.high if shown else None,
            chance=0.0,
            evidence=f"members-{direction}",
        )
    ]


def _name_action(state: State, name: str) -> str | None:
    """Return a label for how a node acts; None if nothing about it is unusual."""
    effect = state.effects[name]
    noising = mean_of(effect.noising) or 0.0
    denoising = mean_of(effect.denoising) or 0.0
    small = thresholds.MIN_DROP
    large = thresholds.MAX_GAP_OUT
    if min(noising, denoising) < -small and max(noising, denoising) < small:
        return "opposing"
    if partners := state.partners.get(name):
        labels = ", ".join(Node.parse(partner).label for partner in partners)
        return f"redundant with {labels}: taking out both costs more than each alone"
    if abs(noising) < small and abs(denoising) < small:
        return "hidden: no effect alone in either direction"
    if abs(noising) < small and abs(denoising) >= large:
        return "redundant: sufficient, not necessary"
    if abs(denoising) < small and abs(noising) >= large:
        return "joint: necessary, not sufficient"
    return None
