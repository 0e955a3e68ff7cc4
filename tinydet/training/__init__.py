"""What a run of training is made of: settings, a start, steps, epochs, and what it says as it goes."""
