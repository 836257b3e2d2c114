"""From a plan to a model: rounds, their journal, what they measure."""
