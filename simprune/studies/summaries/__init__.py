"""What becomes of the rows of a long study: its tables, figures and sentences."""
