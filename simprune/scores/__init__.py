"""How redundant every structure is, and what its removal does to the output."""
