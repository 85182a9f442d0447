"""The standard library's own suite for ProcessPoolExecutor, run against HPCPoolExecutor."""
