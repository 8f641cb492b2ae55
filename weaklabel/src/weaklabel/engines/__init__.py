"""The engines that compute votes, one a module: Polars, DuckDB, PySpark."""
