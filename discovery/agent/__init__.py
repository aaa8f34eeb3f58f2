"""The discovery agent: finds a circuit by a chain of measurements, and validates it.

It keeps a journal of what was measured and concluded at each stage.

    from discovery import load_model, load_task, discover

    model = load_model("bundled")
    run = discover(model, load_task("ioi", model))
    run.circuit.verdict, run.circuit.members
"""

from discovery.agent.cost_estimate import CostEstimate, estimate_cost
from discovery.agent.features import add_features_to_run
from discovery.agent.planning import Outlook
from discovery.agent.run import DiscoveryResult, discover, is_finished, resume, resume_open_run
from discovery.agent.verification import Verification, verify_run

__all__ = [
    "CostEstimate",
    "DiscoveryResult",
    "Outlook",
    "Verification",
    "add_features_to_run",
    "discover",
    "estimate_cost",
    "is_finished",
    "resume",
    "resume_open_run",
    "verify_run",
]
