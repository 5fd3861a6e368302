"""Show a zoo: one HTML page that works offline, the same charts as SVG and PNG, and findings in words."""

from __future__ import annotations

from zoarium.report.dataset_card import dataset_card
from zoarium.report.findings import Finding, findings
from zoarium.report.similarity_map import similarity_map, write_similarity_map
from zoarium.report.tables import ReportData, collect
from zoarium.report.write import chart, save_charts, warm_up, write_report

__all__ = [
    "Finding",
    "ReportData",
    "chart",
    "collect",
    "dataset_card",
    "findings",
    "save_charts",
    "similarity_map",
    "warm_up",
    "write_report",
    "write_similarity_map",
]
