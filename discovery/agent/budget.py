"""How a budget is divided over the stages before anything is spent.

A small budget should buy a ranking of nodes and a circuit before it buys descriptions, so shares
are given in this order, from what is left each time:

1. what the run needs at all: the check, the ranking of nodes, the first candidate;
2. the evaluation on held-out pairs; if the budget does not reach it there is no verdict, and what
   is left goes to the search;
3. the search, at most MEND_SHARE of the rest if the rest does not reach everything;
4. the repetition of the search (condition f), at most STABILITY_SHARE of the budget;
5. sweeps by position, edges and positions of the nodes, each whole or not at all.

The search and what follows the evaluation may spend their shares and all that the stages before
them left over, but not the shares of later stages (`BudgetPlan.allowance`).
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from discovery.graph import JsonModel

MEND_SHARE = 0.7  # of what is left after the evaluation's share
STABILITY_SHARE = 0.3  # of the budget

FIRST_STAGES = ("check", "heads", "candidate")
NEEDED_STAGES = (*FIRST_STAGES, "validate")
"""Without these there is nothing to judge, so the run ends if its budget does not reach them. Any
other stage is left out, and the run goes on with the next."""
WHOLE_STAGES = ("localise", "components", "edges", "interpret")
"""Stages that are left out if their share does not cover their estimate."""


class BudgetPlan(JsonModel):
    """The shares of a budget.

    Attributes:
        budget: the forward-pass equivalents of the whole run.
        spent: what the run had spent when the plan was made.
        estimates: what each stage that is not done is estimated to cost, in their order.
        shares: what is set aside for each of them.
    """

    budget: float
    spent: float = 0.0
    estimates: Mapping[str, float] = Field(default_factory=dict)
    shares: Mapping[str, float] = Field(default_factory=dict)

    @property
    def needed(self) -> float:
        """What the whole run is estimated to take, with what it has spent."""
        return self.spent + sum(self.estimates.values())

    @property
    def needed_for_verdict(self) -> float:
        """What the run takes until its evaluation, if it evaluates the first candidate."""
        return self.spent + sum(self.estimates.get(name, 0.0) for name in NEEDED_STAGES)

    @property
    def reaches_verdict(self) -> bool:
        """Whether the budget is estimated to reach the evaluation on held-out pairs."""
        return self.needed_for_verdict <= self.budget

    @property
    def left_out(self) -> tuple[str, ...]:
        """The stages that get nothing."""
        return tuple(name for name in self.estimates if not self.shares.get(name, 0.0))

    @property
    def shortened(self) -> tuple[str, ...]:
        """The stages that get less than they are estimated to take."""
        return tuple(
            name
            for name, estimate in self.estimates.items()
            if 0.0 < self.shares.get(name, 0.0) < estimate
        )

    @property
    def shortage(self) -> str:
        """What the budget does not reach, in words; empty if it reaches everything."""
        if self.needed <= self.budget:
            return ""
        text = f"the run ends at the budget of {self.budget:,.0f}, and would take about "
        text += f"{self.needed:,.0f}"
        if not self.reaches_verdict:
            text += (
                "; this budget cannot reach a verdict: about "
                f"{self.needed_for_verdict:,.0f} are needed for one on the first candidate"
            )
        if self.shortened:
            text += f"; shortened: {', '.join(self.shortened)}"
        if self.left_out:
            text += f"; left out: {', '.join(self.left_out)}"
        return text

    def allowance(self, stage: str, spent: float) -> float:
        """Return what a stage may spend.

        A stage that the run needs may spend all that is left, since estimates are not exact and
        nothing can be judged without it. Any other leaves later stages their shares.

        Args:
            stage: the stage that begins.
            spent: what the run has spent so far.
        """
        remaining_budget = max(self.budget - spent, 0.0)
        if stage in NEEDED_STAGES:
            return remaining_budget
        names = list(self.shares)
        later = names[names.index(stage) + 1 :] if stage in names else names
        return max(remaining_budget - sum(self.shares[name] for name in later), 0.0)


def plan_budget(
    estimates: Mapping[str, float], budget: float, *, spent: float = 0.0, done: tuple[str, ...] = ()
) -> BudgetPlan:
    """Divide what is left of a budget over the stages that are not done.

    Args:
        estimates: what each stage is estimated to cost, in the order of the stages.
        budget: the budget of the whole run.
        spent: what the run has spent so far.
        done: the stages that are finished, which get nothing.
    """
    waiting = {name: cost for name, cost in estimates.items() if name not in done}
    shares = dict.fromkeys(waiting, 0.0)
    remaining_budget = max(budget - spent, 0.0)

    def give(name: str, limit: float) -> None:
        nonlocal remaining_budget
        if name in shares:
            shares[name] = min(waiting[name], limit, remaining_budget)
            remaining_budget -= shares[name]

    for name in FIRST_STAGES:
        give(name, remaining_budget)
    reaches_verdict = waiting.get("validate", 0.0) <= remaining_budget
    if reaches_verdict:
        give("validate", remaining_budget)
        later = sum(waiting[name] for name in waiting if name not in NEEDED_STAGES)
        share = 1.0 if later <= remaining_budget else MEND_SHARE
        give("mend", share * remaining_budget)
        give("stability", STABILITY_SHARE * budget)
        for name in WHOLE_STAGES:
            if waiting.get(name, 0.0) <= remaining_budget:
                give(name, remaining_budget)
    else:
        give("mend", remaining_budget)
    return BudgetPlan(budget=budget, spent=spent, estimates=waiting, shares=shares)
