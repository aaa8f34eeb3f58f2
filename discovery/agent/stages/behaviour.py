"""Stage 1: does the model do the task? Nothing can be found where nothing is."""

from __future__ import annotations

from discovery.agent.context import RunContext
from discovery.agent.state import State
from discovery.evaluation import build_split_evaluation
from discovery.methods.behaviour import BehaviourCheck, check_task


def check_behaviour(state: State, context: RunContext) -> State:
    """Measure the behaviour on both splits; where a gate does not hold the run ends here with `no_behaviour`."""
    found = {split: _measure_behaviour(context, split) for split in ("discovery", "heldout")}
    gates = {split: b.reasons for split, b in found.items()}
    measured = {split: _behaviour_facts(b) for split, b in found.items()}
    present = not any(gates.values())
    why = "; ".join(f"{split}: {reason}" for split, reasons in gates.items() for reason in reasons)
    splits = {split: build_split_evaluation(b, {}) for split, b in found.items()}
    return context.finish_stage(
        state.with_changes(gates=gates, splits=splits, behaviour=measured),
        "check",
        measured,
        "the model does the task" if present else "there is no behaviour to explain",
        why
        or "accuracy is above chance and any constant answer, and the corruption removes the behaviour, on both splits",
    )


def _measure_behaviour(context: RunContext, split: str) -> BehaviourCheck:
    engine = context.evaluator(split).engine
    return check_task(context.model, engine.task, metric=context.metric, engine=engine)


def _behaviour_facts(b: BehaviourCheck) -> dict[str, float | int | str]:
    return {
        "n": b.n,
        "metric": b.metric,
        "metric_clean": b.metric_clean,
        "metric_corrupted": b.metric_corrupted,
        "gap": b.gap.mean,
        "gap_low": b.gap.low,
        "accuracy": b.accuracy,
        "accuracy_low": b.accuracy_low,
        "best_constant": b.best_constant,
        "top1": b.top1,
    }
