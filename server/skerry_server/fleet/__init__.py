"""Devices and cohorts: enrolment, what devices report, who belongs to what."""
