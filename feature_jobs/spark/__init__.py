"""Windows of a day answered by Spark: the kernel of `feature_jobs.windows`, once for each part of the asking rows."""
