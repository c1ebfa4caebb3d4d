"""Encodes rows of features into the inputs of the network. Training and serving share this code.

A `Layout` lists the columns of a scenario's enabled features that are embedded as one id (slots) or as several ids
(bags), and those that are numbers. `encode` applies it to a table. Ids become 64-bit keys; each feature has a
namespace, so that equal ids of two features get different keys unless `table` joins them. Numbers are scaled. Nothing
is fitted here, so no state can differ between training and serving.
"""

from feature_jobs.transforms.encode import Encoded, Encoder, Floats, encode, numbered_shares
from feature_jobs.transforms.keys import LONG_TEXT, hash_ids, splitmix64
from feature_jobs.transforms.layout import Bag, Layout, Number, Slot
from feature_jobs.transforms.numbers import LARGEST_NUMBER

__all__ = [
    "LARGEST_NUMBER",
    "LONG_TEXT",
    "Bag",
    "Encoded",
    "Encoder",
    "Floats",
    "Layout",
    "Number",
    "Slot",
    "encode",
    "hash_ids",
    "numbered_shares",
    "splitmix64",
]
