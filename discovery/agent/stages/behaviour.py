"""Stage 1: does the model do the task? Nothing can be found where nothing is."""

from __future__ import annotations

from discovery.agent.context import Context
from discovery.agent.state import State
from discovery.evaluation.conditions import split_evaluation
from discovery.methods.behaviour import Behaviour, check_task


def check(state: State, context: Context) -> State:
    """Measure the behaviour on both splits; where a gate does not hold the run ends here with `no_behaviour`."""
    found = {split: _measure(context, split) for split in ("discovery", "heldout")}
    gates = {split: b.reasons for split, b in found.items()}
    measured = {split: _numbers(b) for split, b in found.items()}
    present = not any(gates.values())
    why = "; ".join(f"{split}: {reason}" for split, reasons in gates.items() for reason in reasons)
    splits = {split: split_evaluation(b, {}) for split, b in found.items()}
    return context.finish(
        state.with_(gates=gates, splits=splits, behaviour=measured),
        "check",
        measured,
        "the model does the task" if present else "there is no behaviour to explain",
        why or "accuracy is above chance and any constant answer, and the corruption removes the behaviour, on both splits",
    )


def _measure(context: Context, split: str) -> Behaviour:
    engine = context.bench(split).engine
    return check_task(context.model, engine.task, metric=context.metric, engine=engine)


def _numbers(b: Behaviour) -> dict[str, float | int | str]:
    return {
        "n": b.n,
        "metric": b.metric,
        "metric_clean": b.metric_clean,
        "metric_corrupted": b.metric_corrupted,
        "gap": b.gap.mean,
        "gap_low": b.gap.low,
        "accuracy": b.accuracy,
        "accuracy_low": b.accuracy_low,
        "best_constant": b.constant,
        "top1": b.top1,
    }
