"""The process tree under ``skerry up``: which processes, how they are started, watched, restarted and stopped."""
