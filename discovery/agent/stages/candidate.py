"""Stages 5 and 6 ("candidate", "mend"): a first circuit from the curve, then the search from there.

Both use discovery pairs only.
"""

from __future__ import annotations

from discovery.agent.context import RunContext
from discovery.agent.search.decision import Decision
from discovery.agent.search.fit import (
    choose_start,
    curve_point,
    describe_fit,
    measure_curve,
    measure_fits,
)
from discovery.agent.search.redundancy import redundant_partners
from discovery.agent.search.search_circuit import search_circuit
from discovery.agent.state import State
from discovery.errors import BudgetError


def choose_candidate(state: State, context: RunContext) -> State:
    """Take the first nodes of the ranking that are faithful and necessary together."""
    f_by_ablation = context.evaluator("discovery").f_by_ablation
    undefined = [ablation for ablation, f in f_by_ablation.items() if not f.is_defined]
    if undefined:
        return context.finish_stage(
            state,
            "candidate",
            {"undefined": undefined},
            "no circuit",
            f"f is null under {', '.join(undefined)}: "
            "ablating everything does not lower the metric",
        )
    points, size = measure_curve(f_by_ablation, state.ranked_nodes)
    start = choose_start(size, state.ranked_nodes)
    names = tuple(str(node) for node in sorted(start))
    why = "smallest size on the curve at which (a) and (b) hold as points under both ablations"
    if size is None:
        why = (
            "no set on the curve is faithful and necessary under both ablations, so the search "
            "starts from the whole universe"
        )
    (fit,) = measure_fits(f_by_ablation, [start])
    context.save_set_metrics()
    return context.finish_stage(
        state.with_changes(circuit=names, curve=tuple(points)),
        "candidate",
        describe_fit(fit),
        f"{len(names)} nodes: {', '.join(names)}",
        why,
    )


def refine_candidate(state: State, context: RunContext) -> State:
    """Search for the circuit from the candidate, and find which of its nodes are redundant."""
    if not state.circuit:
        return context.finish_stage(state, "mend", {}, "nothing to mend", "there is no candidate")
    f_by_ablation = context.evaluator("discovery").f_by_ablation
    stops: list[str] = []

    def on_decision(decision: Decision) -> None:
        context.write_decision("mend", decision.measured, decision.concluded, decision.why)
        if decision.stopped is not None:
            stops.append(decision.why)

    circuit = search_circuit(
        f_by_ablation, state.circuit_nodes, state.ranked_nodes, context.seed, on_decision
    )
    (fit,) = measure_fits(f_by_ablation, [circuit])
    names = tuple(str(node) for node in sorted(circuit))
    points = [curve_point(ablation, names, fit) for ablation in fit]
    partners: dict[str, tuple[str, ...]] = {}
    try:
        partners = redundant_partners(
            context.evaluator("discovery").f("resample"),
            [node for node in state.ranked_nodes if node in circuit],
        )
    except BudgetError as fault:
        stops.append(fault.cause)
    context.save_set_metrics()
    redundancies = "".join(
        f"; if {name} is ablated, {', '.join(others)} does its work"
        for name, others in partners.items()
    )
    return context.finish_stage(
        state.with_changes(circuit=names, curve=(*state.curve, *points), partners=partners),
        "mend",
        describe_fit(fit),
        f"{len(names)} nodes: {', '.join(names)}{redundancies}",
        stops[0] if stops else "nothing more changes",
    )
