"""The approximate level of a `LocalIndex`: derived, disposable, and found by k-means."""
