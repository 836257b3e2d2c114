"""What the device itself allows: heat, battery, slow answers, and whether it takes part in a campaign."""
