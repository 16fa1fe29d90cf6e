"""The autoscaling study: frozen load, tuned knobs, every run on disk, and the tables of docs/autoscaling-study.md."""
