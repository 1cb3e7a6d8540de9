"""The main job: score, prune and gate a real sentence encoder, measure it, and report."""

from headkit.demo.job import SIZES, Size, run
from headkit.demo.reviews import Review, load_reviews, split_by_review

__all__ = ["SIZES", "Review", "Size", "load_reviews", "run", "split_by_review"]
