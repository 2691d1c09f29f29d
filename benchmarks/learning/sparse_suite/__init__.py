"""Parts of the benchmark `sparse`."""
