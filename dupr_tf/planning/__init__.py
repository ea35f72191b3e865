"""Plans the needs of a run of any size from counted operations and bytes, measured speeds and named assumptions."""
