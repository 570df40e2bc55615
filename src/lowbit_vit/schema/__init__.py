"""Level 0 and 1: pure documents (profile, trial, plan, record) and the facts of the machine. No torch in here."""
