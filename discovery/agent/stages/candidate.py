"""Stages 5 and 6: the candidate circuit from the faithfulness-versus-size curve, then broken and mended; discovery pairs only."""

from __future__ import annotations

from discovery.agent.context import RunContext
from discovery.agent.search.fit import choose_start, measure_curve, measure_fits
from discovery.agent.search.mend import STOPPED_BY_BUDGET, STOPPED_BY_LIMIT
from discovery.agent.search.redundancy import redundant_partners
from discovery.agent.search.rivals import search_circuit
from discovery.agent.state import State
from discovery.errors import BudgetError
from discovery.graph import CurvePoint


def choose_candidate(state: State, context: RunContext) -> State:
    """The first nodes of the ranking that are faithful and necessary together, under both ablations."""
    both = context.evaluator("discovery").f_by_ablation
    undefined = [ablation for ablation, f in both.items() if not f.is_defined]
    if undefined:
        return context.finish_stage(
            state,
            "candidate",
            {"undefined": undefined},
            "no circuit",
            f"f is null under {', '.join(undefined)}: ablating everything does not lower the metric",
        )
    points, size = measure_curve(both, state.ranked_nodes)
    start = choose_start(size, state.ranked_nodes)
    names = [str(node) for node in sorted(start)]
    why = "smallest size on the curve at which (a) and (b) hold as points under both ablations"
    if size is None:
        why = "no set on the curve is faithful and necessary under both ablations, so the search starts from the whole universe"
    fit = measure_fits(both, [start])[0]
    measured = {
        ablation: {"f(C)": part.faithfulness, "f(U\\C)": part.knockout}
        for ablation, part in fit.items()
    }
    context.save_set_metrics()
    return context.finish_stage(
        state.with_changes(circuit=tuple(names), curve=tuple(points)),
        "candidate",
        measured,
        f"{len(names)} nodes: {', '.join(names)}",
        why,
    )


def refine_candidate(state: State, context: RunContext) -> State:
    """Add what (c) demands, drop what (d) rejects, until nothing changes."""
    if not state.circuit:
        return context.finish_stage(state, "mend", {}, "nothing to mend", "there is no candidate")
    both = context.evaluator("discovery").f_by_ablation

    spent: list[str] = []

    def say(measured: dict[str, object], concluded: str, why: str) -> None:
        context.write_decision(state, "mend", measured, concluded, why)
        if concluded in (STOPPED_BY_BUDGET, STOPPED_BY_LIMIT):
            spent.append(why)

    circuit = search_circuit(both, state.circuit_nodes, state.ranked_nodes, context.seed, say)
    fit = measure_fits(both, [circuit])[0]
    measured = {
        ablation: {"f(C)": part.faithfulness, "f(U\\C)": part.knockout}
        for ablation, part in fit.items()
    }
    names = [str(node) for node in sorted(circuit)]
    points = tuple(
        CurvePoint(
            ablation=ablation, size=len(names), nodes=tuple(names), faithfulness=part.faithfulness
        )
        for ablation, part in fit.items()
    )
    found = {}
    try:
        found = redundant_partners(
            context.evaluator("discovery").f("resample"),
            [node for node in state.ranked_nodes if node in circuit],
        )
    except BudgetError as short:
        spent.append(short.cause)
    context.save_set_metrics()
    together = "".join(
        f"; {name} does the work of {', '.join(others)} where it is out"
        for name, others in found.items()
    )
    return context.finish_stage(
        state.with_changes(circuit=tuple(names), curve=(*state.curve, *points), partners=found),
        "mend",
        measured,
        f"{len(names)} nodes: {', '.join(names)}{together}",
        spent[0] if spent else "nothing more changes",
    )
