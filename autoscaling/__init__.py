"""How many replicas: observe -> propose -> share -> constrain -> move, the same live and in the replay lab."""
