"""The report's charts, one module a subject; each chart is one Vega-Lite document."""
