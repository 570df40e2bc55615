"""How each kind of check of the ledger is carried out: on the printed numbers, on measurements, on predictions, on blocks."""
