"""Experiments that can be cut off at any point: every result is kept under a hash of what it is of.

Rules that hold for all of them: calibration and validation are cut from the training data before
fine-tuning; scores come from the fine-tuned model on calibration data; arms share one allocation
rule and one number of steps; the test data are read once, for the figures.
"""

from headkit.studies.results import Results
from headkit.studies.splits import Sentence, Splits, read_splits

__all__ = ["Results", "Sentence", "Splits", "read_splits"]
