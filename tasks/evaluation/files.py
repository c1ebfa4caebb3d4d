"""The files that `evaluate` writes into its output folder."""

EVALUATION_FILE = "evaluation.json"
REPORT_FILE = "report.html"
