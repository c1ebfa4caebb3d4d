"""Windows of a day answered by Spark: the kernel of `feature_jobs.windows`, once for each part of the asking rows.

session.py   opens a session on the scenario's master, or uses the one that is open
windows.py   sends the parts, and joins their answers
"""
