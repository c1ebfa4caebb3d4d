"""Exact aggregates over windows `[t - width, t)`, whose cost on a day does not grow with the width.

State is carried from day to day. Each day leaves a run, its rows by key and time, and tiles, summaries per key of
2^j whole days. A window reads the runs of the days that it cuts and the tiles of the days that it holds whole.

    keys.py        rows by the values of one or several columns
    days.py        which runs and tiles a day reads, and which tiles it adds
    operations.py  count, sum, min, max, newest time, last k: summaries that can be combined
    runs.py        a day's rows by key and time
    tiles.py       summaries of whole days
    files.py       both as files
    query.py       the aggregates of the asking rows
"""
