"""What hardware there is, how it is linked, who holds which GPU, and Ray on top of it."""
