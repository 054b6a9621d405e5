"""One model, and perhaps one index, for every program that speaks HTTP."""
