"""Forecasts a run for `pretrain --dry-run`, `doctor` and `plan`, from one count of its parameters and costs."""
