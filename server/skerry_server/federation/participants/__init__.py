"""Who takes part: eligibility, selection, recruiting."""
