"""What ``lance-rerank demo`` runs: a corpus every machine already has, and questions with known answers."""
