"""Which models there are and which one was champion when: MLflow for people, our own ledger for decisions."""
