"""A random token for the Ray clusters that tests start: Ray reads it when it is imported, so it comes first."""

from raylane.cluster.local_ray import use_a_token

use_a_token()
