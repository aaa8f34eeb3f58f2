"""Tests and areas that a record reports beside the conditions; they decide nothing."""

from discovery.evaluation.supplementary.curve_areas import integrate_curves
from discovery.evaluation.supplementary.hypothesis_tests import run_hypothesis_tests

__all__ = ["integrate_curves", "run_hypothesis_tests"]
