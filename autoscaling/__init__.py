"""How many replicas: signals to a decision to Ray, and the replay lab."""
