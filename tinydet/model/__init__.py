"""Thin modules that hold the weights, and the model as a function of them."""
