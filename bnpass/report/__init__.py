"""Reports: what a verb did, for people and for programs."""

from bnpass.report.base import SCHEMA, Check, FileFact, Report, aligned, counted, versions
from bnpass.report.expand import ExpandReport
from bnpass.report.export import ExportReport
from bnpass.report.fold import FoldReport

__all__ = [
    "SCHEMA",
    "Check",
    "ExpandReport",
    "ExportReport",
    "FileFact",
    "FoldReport",
    "Report",
    "aligned",
    "counted",
    "versions",
]
