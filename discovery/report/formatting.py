"""The formats of numbers, verdicts and outcomes in the report.

A dash means "not measured". Intervals are 95% bootstrap intervals over pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from discovery.graph import CircuitGraph, Effect, Outcome, RoleMeasurement, Score, Verdict
from discovery.graph.captions import format_signed
from discovery.report.markup import Html, element

UNKNOWN_MARK = "—"
SHARED_EDGES = (
    "In this model several query heads share keys and values. An edge into k or v of a head "
    "changes the copy that this head reads, and nothing for the other heads of its group."
)


class Meaning(NamedTuple):
    """How a verdict or an outcome is shown.

    Attributes:
        mark: a symbol, so that the colour is not the only sign.
        tone: the CSS class of the colour: good, bad or unsure.
        word: the name.
        sense: what it means, in a sentence.
    """

    mark: str
    tone: str
    word: str
    sense: str = ""


VERDICT_MEANINGS: Mapping[Verdict | None, Meaning] = {
    "verified": Meaning(
        "✔", "good", "Verified", "Every condition holds on held-out pairs, under both ablations."
    ),
    "partial": Meaning(
        "◐", "unsure", "Partial", "Some conditions hold; each one that does not is named below."
    ),
    "rejected": Meaning("✘", "bad", "Rejected", "The circuit does not explain the behaviour."),
    "inconclusive": Meaning(
        "?", "unsure", "Inconclusive", "The evidence does not decide it either way."
    ),
    "no_behaviour": Meaning(
        "∅",
        "bad",
        "No behaviour",
        "The model does not do the task, so there is no circuit to find.",
    ),
    None: Meaning(
        "…", "unsure", "Not evaluated", "The circuit has not been tested on held-out pairs yet."
    ),
}

OUTCOME_MEANINGS: Mapping[Outcome, Meaning] = {
    "holds": Meaning("✔", "good", "holds"),
    "fails": Meaning("✘", "bad", "fails"),
    "undecided": Meaning("?", "unsure", "undecided"),
    "not_run": Meaning("…", "unsure", "not run"),
}


def format_title(circuit: CircuitGraph) -> str:
    """Return what a record is about: its task and its model."""
    return f"{circuit.task.name or 'A task'} in {circuit.model.name or 'a model'}"


def format_outcome(value: Outcome) -> Html:
    """Format an outcome as its mark and its word."""
    meaning = OUTCOME_MEANINGS[value]
    return element("span", f"{meaning.mark} {meaning.word}", class_=f"outcome {meaning.tone}")


def format_number(value: float | None, digits: int = 2) -> str:
    """Format a number with `digits` decimals, or as a dash if it is not known."""
    return UNKNOWN_MARK if value is None else _round(value, digits)


def format_share(value: float | None) -> str:
    """Format a share in percent, or as a dash if it is not known."""
    return UNKNOWN_MARK if value is None else f"{value:.1%}"


def format_p_value(value: float | None) -> str:
    """Format a p-value, or its upper bound if it is small."""
    if value is None:
        return UNKNOWN_MARK
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_effect(value: Effect | None) -> str:
    """Format an effect with its sign and its interval: +0.52 [0.48, 0.56]."""
    if value is None or value.mean is None:
        return UNKNOWN_MARK
    return format_signed(value.mean) + format_interval(value.low, value.high)


def format_role_measurement(item: RoleMeasurement) -> tuple[str, ...]:
    """Format what a part of a role rests on: the part, the measure, its value, chance and p."""
    value = UNKNOWN_MARK
    if item.mean is not None:
        value = format_number(item.mean) + format_interval(item.low, item.high)
    chance = format_number(item.chance)
    return (item.role.partition(":")[0], item.measure, value, chance, format_p_value(item.p))


def format_score(value: Score | None) -> str:
    """Format a value of f with its interval."""
    if value is None or value.value is None:
        return UNKNOWN_MARK
    return format_number(value.value) + format_interval(value.low, value.high)


def format_interval(low: float | None, high: float | None) -> str:
    """Format an interval to stand after a number. The text is empty if it is not known."""
    return "" if low is None or high is None else f" [{_round(low)}, {_round(high)}]"


def _round(value: float, digits: int = 2) -> str:
    """Round a number. The result is never a negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def format_bytes(count: int | None) -> str | None:
    """Format a number of bytes in a unit that suits it."""
    if count is None:
        return None
    if count < 1024:
        return f"{count} B"
    size = count / 1024
    unit = "KiB"
    for larger_unit in ("MiB", "GiB"):
        if size >= 1024:
            size /= 1024
            unit = larger_unit
    return f"{size:.1f} {unit}"


def format_duration(seconds: float | None) -> str | None:
    """Format a duration in seconds, or in minutes and seconds."""
    if seconds is None:
        return None
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes} min {remainder} s" if minutes else f"{seconds:.1f} s"
