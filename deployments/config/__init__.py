"""What the operator wrote, read strictly: in goes YAML, out come frozen values."""
