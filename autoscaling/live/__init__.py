"""The autoscaler on a live cluster: readings in, counts for Serve out. Start at scaler.py."""
