"""Getting back what edits cost: closed-form reconstruction, then training."""
