"""A drawn street: solids in three dimensions, laid out and painted."""
