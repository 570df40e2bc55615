"""The claims of a paper, judged: one module a family of checks, one class a kind of check."""
