"""The discovery agent: chains the measurements into a circuit, validates it, and keeps a journal of its reasons.

from discovery import load_model, load_task, discover
model = load_model("bundled")
run = discover(model, load_task("ioi", model))
run.circuit.verdict, run.circuit.members
"""

from discovery.agent.cost_estimate import Estimate, estimate
from discovery.agent.features import add_features_to_run
from discovery.agent.run import Discovered, discover, go_on, resume
from discovery.agent.verification import Verification, verify

__all__ = ["Discovered", "Estimate", "Verification", "add_features_to_run", "discover", "estimate", "go_on", "resume", "verify"]
