"""The device's side of MQTT: connections, desired and reported state, the outbox."""
