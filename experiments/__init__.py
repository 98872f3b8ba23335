"""Experiments: one module a question, run as `python -m experiments.NAME`; `--help` lists the flags."""
