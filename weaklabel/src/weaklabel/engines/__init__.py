"""What computes votes: the plan, its parts, and an engine a module: Polars, DuckDB, PySpark."""
