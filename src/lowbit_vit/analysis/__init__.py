"""Level 7: records -> tidy tables and statistics. No torch, no ray."""
