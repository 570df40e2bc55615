"""How a backbone is made: trained from scratch by a recipe of its own, or converted; then adapted for the post-training trials."""
