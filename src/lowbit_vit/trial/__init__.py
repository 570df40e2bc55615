"""What one trial does (adapt, evaluate, measure), alone or as one cell of a scan on a resident model."""
