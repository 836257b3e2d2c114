"""Simulations and virtual fleets on a workstation, with the task, strategy and agent code of production."""
