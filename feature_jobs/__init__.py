"""Sources, point-in-time joins, feature transforms and expectations."""
