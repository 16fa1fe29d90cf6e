"""The replay lab: policies against recorded and synthetic load in virtual time."""
