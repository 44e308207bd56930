"""Model families: which parts a published model is made of. Assembly only."""
