"""Levels 4 and 5: what one trial does (fine-tune, evaluate, measure), alone or as one cell of a warm scan."""
