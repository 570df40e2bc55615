"""Level 8: tables -> figures and pages. No torch, no ray."""
