"""Schedules and edges; no logic. The only importer of Airflow."""
