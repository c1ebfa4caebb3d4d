"""The scenario: its sections, reading it, and the places that messages about it name."""

from feature_jobs.schema.features import (
    CountFeature,
    CrossFeature,
    EmbeddedFeature,
    Embedding,
    IdFeature,
    IdsFeature,
    NumberFeature,
    RateFeature,
    RecencyFeature,
    SequenceFeature,
    TrailingFeature,
)
from feature_jobs.schema.reading import load_scenario
from feature_jobs.schema.sections import Column, Distributed, Model, Quantize, Scenario, SearchRange, Table, Time, Train
from feature_jobs.schema.yaml_file import name_taken, place_of, same_name

__all__ = [
    "Column",
    "CountFeature",
    "CrossFeature",
    "Distributed",
    "EmbeddedFeature",
    "Embedding",
    "IdFeature",
    "IdsFeature",
    "Model",
    "NumberFeature",
    "Quantize",
    "RateFeature",
    "RecencyFeature",
    "Scenario",
    "SearchRange",
    "SequenceFeature",
    "Table",
    "Time",
    "TrailingFeature",
    "Train",
    "load_scenario",
    "name_taken",
    "place_of",
    "same_name",
]
