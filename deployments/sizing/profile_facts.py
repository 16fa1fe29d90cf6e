"""The size of the model that a profile is checked with."""

from raylane.deployments.config.builtin import CONFIGS
from raylane.deployments.config.profiles import Profile
from raylane.deployments.sizing.model_facts import ModelFacts, model_facts


def profile_facts(profile: Profile) -> ModelFacts:
    """Of the profile's builtin shape, with its positions where the shape has fewer."""
    config = CONFIGS[profile.shape]
    if profile.positions is not None:
        config = {**config, "max_position_embeddings": profile.positions}
    return model_facts(config, profile.shape)
