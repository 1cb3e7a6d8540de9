"""A report in one HTML file: no network, no library, readable without its script."""

from headkit.report.content import Report, Sentence
from headkit.report.page import render, write

__all__ = ["Report", "Sentence", "render", "write"]
