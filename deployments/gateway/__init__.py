"""The HTTP front of all models: filter, score and pick a replica, then pass the bytes straight through."""
