"""Your own images and weights: a profile made from them."""
