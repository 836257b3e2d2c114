"""From parameters to signed releases: artifact store, candidates, gates, signing."""
