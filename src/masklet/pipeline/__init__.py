"""The flow from pictures and prompts to masks: plain Python and NumPy between stages, no network maths."""
