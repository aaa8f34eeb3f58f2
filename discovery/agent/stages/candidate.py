"""Stages 3 and 4 ("candidate", "mend"): a first circuit from the curve, then the search from there.

Both use discovery pairs only.
"""

from __future__ import annotations

from discovery.agent.context import RunContext
from discovery.agent.search.decision import Decision
from discovery.agent.search.fit import (
    WITH_MARGIN,
    choose_start,
    curve_point,
    describe_fit,
    measure_curve,
    measure_fits,
)
from discovery.agent.search.measured import MeasuredFunction, SearchFunctions
from discovery.agent.search.redundancy import redundant_partners
from discovery.agent.search.search_circuit import search_circuit
from discovery.agent.stages.nodes import add_intervals, measure_both_directions
from discovery.agent.state import State
from discovery.errors import BudgetError


def search_functions(context: RunContext) -> SearchFunctions:
    """Return f under each ablation, on the pairs of the search."""
    f_by_ablation = context.search_evaluator.f_by_ablation
    return {ablation: MeasuredFunction(f) for ablation, f in f_by_ablation.items()}


def choose_candidate(state: State, context: RunContext) -> State:
    """Take the first nodes of the ranking that are faithful and necessary, and some more."""
    f_by_ablation = context.search_evaluator.f_by_ablation
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
    functions = search_functions(context)
    curve = measure_curve(functions, state.ranked_nodes, WITH_MARGIN)
    start = choose_start(functions, curve, WITH_MARGIN)
    names = tuple(str(node) for node in sorted(start))
    why = (
        "a quarter more than the smallest size on the curve at which (a) and (b) hold as points "
        "under both ablations, with a margin"
    )
    if curve.smallest_size(WITH_MARGIN) is None:
        why = (
            "no set on the curve is faithful and necessary under both ablations, so the search "
            "starts from the whole universe"
        )
    (fit,) = measure_fits(functions, [start])
    context.save_set_metrics()
    return context.finish_stage(
        state.with_changes(circuit=names, curve=tuple(curve.points)),
        "candidate",
        describe_fit(fit),
        f"{len(names)} nodes: {', '.join(names)}",
        why,
    )


def refine_candidate(state: State, context: RunContext) -> State:
    """Search for the circuit from the candidate, and find which of its nodes are redundant."""
    if not state.circuit:
        return context.finish_stage(state, "mend", {}, "nothing to mend", "there is no candidate")
    functions = search_functions(context)
    stops: list[str] = []

    def on_decision(decision: Decision) -> None:
        context.write_search_decision(state, decision.measured, decision.concluded, decision.why)
        if decision.stopped is not None:
            stops.append(decision.why)

    outcome = search_circuit(
        functions,
        state.circuit_nodes,
        state.ranked_nodes,
        context.seed,
        on_decision,
        context.search_evaluator.f_by_ablation,
    )
    (fit,) = measure_fits(functions, [outcome.circuit])
    names = tuple(str(node) for node in sorted(outcome.circuit))
    points = [curve_point(ablation, names, fit) for ablation in fit]
    state = state.with_changes(
        circuit=names,
        curve=(*state.curve, *points),
        drop_shares={str(node): share for node, share in outcome.drop_shares.items()},
    )
    try:
        state = _describe_members(state, context)
    except BudgetError as fault:
        stops.append(fault.cause)
    context.save_set_metrics()
    return context.finish_stage(
        state,
        "mend",
        describe_fit(fit),
        f"{len(names)} nodes: {', '.join(names)}{_describe_redundancies(state)}",
        stops[0] if stops else "nothing more changes",
    )


def _describe_redundancies(state: State) -> str:
    return "".join(
        f"; if {name} is ablated, {', '.join(others)} does its work"
        for name, others in state.partners.items()
    )


def _describe_members(state: State, context: RunContext) -> State:
    """Measure the effects of the circuit's nodes on all pairs of the search, and what they repeat.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    evaluator = context.search_evaluator
    members = state.circuit_nodes
    noising, denoising = measure_both_directions(context, evaluator.engine, "members", members)
    effects = add_intervals(evaluator.engine, noising, denoising)
    measured_in = ("members-noising", "members-denoising", "nodes-mean")
    in_order = [node for node in state.ranked_nodes if node in members]
    return state.with_changes(
        effects={**state.effects, **effects},
        evidence={**state.evidence, **dict.fromkeys(effects, measured_in)},
        partners=redundant_partners(evaluator.f("resample"), in_order),
    )
