"""Updates: slots, download, verification, proof, activation, probation."""
