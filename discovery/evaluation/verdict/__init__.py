"""The verdict on a circuit, computed from its evaluation alone.

The verdicts are tried in a fixed order, and the first that matches is given (see
docs/definitions.md, "Verdict"). Its reasons name every condition that fails, is undecided or was
not run, with the numbers. A record is judged by the rules that it was made with: `version_2` for
new ones, `version_1` for those with `schema: "circuit-scout/circuit/1"`.
"""

from __future__ import annotations

from discovery.evaluation.verdict import version_1, version_2
from discovery.evaluation.verdict.findings import EvidenceOrNone, Findings, Judgement
from discovery.evaluation.verdict.reasons import decide_band, explain_repeated_looks
from discovery.evaluation.verdict.recorded import find_contradictions, recorded_stability
from discovery.graph import RULES_VERSION, RulesVersion

__all__ = [
    "EvidenceOrNone",
    "Findings",
    "Judgement",
    "decide_band",
    "explain_repeated_looks",
    "find_contradictions",
    "judge",
    "recorded_stability",
]


def judge(findings: Findings, rules: RulesVersion = RULES_VERSION) -> Judgement:
    """Decide every condition and the verdict by a version of the rules, with reasons."""
    return version_1.judge(findings) if rules == 1 else version_2.judge(findings)
