"""What a run of any size will need, from counted operations and bytes, measured speeds and named assumptions."""
