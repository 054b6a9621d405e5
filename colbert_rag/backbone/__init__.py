"""Text encoders as values: a table of the published ones, and one forward pass for all."""
