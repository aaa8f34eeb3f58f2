"""Stage 1 ("check"): does the model do the task? If it does not, there is no circuit to find."""

from __future__ import annotations

from discovery.agent.context import RunContext
from discovery.agent.state import State
from discovery.evaluation import build_split_evaluation
from discovery.methods.behaviour import BehaviourCheck, check_task
from discovery.tasks.task import SplitName

SPLITS: tuple[SplitName, ...] = ("discovery", "heldout")


def check_behaviour(state: State, context: RunContext) -> State:
    """Measure the behaviour on both splits. If a gate fails, the run ends with `no_behaviour`."""
    checks = {split: _measure_behaviour(context, split) for split in SPLITS}
    gates = {split: check.reasons for split, check in checks.items()}
    measured = {split: _behaviour_facts(check) for split, check in checks.items()}
    splits = {split: build_split_evaluation(check, {}) for split, check in checks.items()}
    failures = [f"{split}: {reason}" for split, reasons in gates.items() for reason in reasons]
    return context.finish_stage(
        state.with_changes(gates=gates, splits=splits, behaviour=measured),
        "check",
        measured,
        "there is no behaviour to explain" if failures else "the model does the task",
        "; ".join(failures)
        or "on both splits, accuracy is above chance and above any constant answer, and the "
        "corruption removes the behaviour",
    )


def _measure_behaviour(context: RunContext, split: SplitName) -> BehaviourCheck:
    engine = context.evaluator(split).engine
    return check_task(context.model, engine.task, metric=context.metric, engine=engine)


def _behaviour_facts(check: BehaviourCheck) -> dict[str, float | int | str]:
    return {
        "n": check.n,
        "metric": check.metric,
        "metric_clean": check.metric_clean,
        "metric_corrupted": check.metric_corrupted,
        "gap": check.gap.mean,
        "gap_low": check.gap.low,
        "accuracy": check.accuracy,
        "accuracy_low": check.accuracy_low,
        "best_constant": check.best_constant,
        "top1": check.top1,
    }
