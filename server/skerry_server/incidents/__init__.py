"""Incidents: what drift or bad health becomes, and how it is cured behind guard rails."""
