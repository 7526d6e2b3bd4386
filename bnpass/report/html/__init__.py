"""A report as a page for a browser."""

from bnpass.report.html.page import to_html

__all__ = ["to_html"]
