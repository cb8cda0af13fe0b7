"""From a budget to the shapes of every layer."""
