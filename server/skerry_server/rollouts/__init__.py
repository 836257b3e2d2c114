"""Rollouts: a release on its way to a cohort, as a canary stage and a fleet stage with a health gate after each."""
