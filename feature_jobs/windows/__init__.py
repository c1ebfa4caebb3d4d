"""Exact aggregates over windows `[t - width, t)`, whose cost on a day does not grow with the width.

State is carried from day to day. Each day leaves a run, its rows by key and time, and tiles, summaries per key of
2^j whole days. A window reads the runs of the days that it cuts and the tiles of the days that it holds whole.

    keys.py        rows by the values of one or several columns
    days.py        which runs and tiles a day reads, and which tiles it adds
    rows.py        rows, summaries, and the content of windows
    operations.py  count, sum, squares, min, max, newest time, last k: summaries that can be combined
    frequent.py    the most frequent values of the last rows
    tallies.py     distinct values, percentiles
    runs.py        a day's rows by key and time
    tiles.py       summaries of whole days
    blocks.py      both in files
    query.py       the aggregates of the asking rows
    parts.py       the same for a part of these rows, for another process
"""
