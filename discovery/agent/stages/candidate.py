"""Stages 5 and 6: the candidate circuit from the faithfulness-versus-size curve, then broken and mended; discovery pairs only."""

from __future__ import annotations

from discovery.agent.context import Context
from discovery.agent.search.fit import curve, fits, start_from
from discovery.agent.search.mend import ENDLESS, SPENT
from discovery.agent.search.redundancy import partners
from discovery.agent.search.rivals import select
from discovery.agent.state import State
from discovery.errors import BudgetError
from discovery.graph import CurvePoint


def candidate(state: State, context: Context) -> State:
    """The first nodes of the ranking that are faithful and necessary together, under both ablations."""
    both = context.bench("discovery").both
    undefined = [ablation for ablation, f in both.items() if not f.defined]
    if undefined:
        return context.finish(
            state,
            "candidate",
            {"undefined": undefined},
            "no circuit",
            f"f is null under {', '.join(undefined)}: ablating everything does not lower the metric",
        )
    points, size = curve(both, state.ranked)
    start = start_from(size, state.ranked)
    names = [str(node) for node in sorted(start)]
    why = "smallest size on the curve at which (a) and (b) hold as points under both ablations"
    if size is None:
        why = "no set on the curve is faithful and necessary under both ablations, so the search starts from the whole universe"
    fit = fits(both, [start])[0]
    measured = {ablation: {"f(C)": part.kept, "f(U\\C)": part.knocked} for ablation, part in fit.items()}
    context.save_sets()
    return context.finish(
        state.with_(circuit=tuple(names), curve=tuple(points)), "candidate", measured, f"{len(names)} nodes: {', '.join(names)}", why
    )


def mending(state: State, context: Context) -> State:
    """Add what (c) demands, drop what (d) rejects, until nothing changes."""
    if not state.circuit:
        return context.finish(state, "mend", {}, "nothing to mend", "there is no candidate")
    both = context.bench("discovery").both

    spent: list[str] = []

    def say(measured: dict[str, object], concluded: str, why: str) -> None:
        context.note(state, "mend", measured, concluded, why)
        if concluded in (SPENT, ENDLESS):
            spent.append(why)

    circuit = select(both, state.nodes, state.ranked, context.seed, say)
    fit = fits(both, [circuit])[0]
    measured = {ablation: {"f(C)": part.kept, "f(U\\C)": part.knocked} for ablation, part in fit.items()}
    names = [str(node) for node in sorted(circuit)]
    points = tuple(
        CurvePoint(ablation=ablation, size=len(names), nodes=tuple(names), faithfulness=part.kept) for ablation, part in fit.items()
    )
    found = {}
    try:
        found = partners(context.bench("discovery").f("resample"), [node for node in state.ranked if node in circuit])
    except BudgetError as short:
        spent.append(short.cause)
    context.save_sets()
    together = "".join(f"; {name} does the work of {', '.join(others)} where it is out" for name, others in found.items())
    return context.finish(
        state.with_(circuit=tuple(names), curve=(*state.curve, *points), partners=found),
        "mend",
        measured,
        f"{len(names)} nodes: {', '.join(names)}{together}",
        spent[0] if spent else "nothing more changes",
    )
