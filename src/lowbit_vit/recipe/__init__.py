"""How a backbone is made: trained from scratch, with a teacher or without, or converted; then adapted for the post-training trials."""
